"""The smoke run of benchmarks/engines.py: everyone takes part and computes the same thing."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINES = {"Unrolled", "Reverse", "Checkpointed", "Implicit", "Direct", "Truncated, K = 10"}


@pytest.mark.bench
def test_a_quick_run_measures_every_engine_and_names_the_peers_that_are_missing(tmp_path):
    report = tmp_path / "engines.json"
    command = ["benchmarks/engines.py", "--quick", "--threads", "1", "--json", str(report)]
    run = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    for case, names in (("many", ENGINES), ("few", {"Reverse", "Forward"})):
        rows = [row for row in found["rows"] if row["case"] == case]
        assert names | {"unroll by hand"} <= {row["name"] for row in rows}
        assert all(row["ms"] > 0 and row["steps"] == 10 for row in rows)
    for peer in ("higher", "torchopt"):
        missing = importlib.util.find_spec(peer) is None
        assert (f"{peer}: not installed" in run.stdout) == missing
        assert (peer in found["settings"]["missing"]) == missing
    (agreement,) = (v for v in found["verdicts"] if "agrees" in v["claim"])
    assert agreement["met"], agreement["figure"]
    # A gradient that leaves out how λ shaped w must be told from the others.
    assert {r["difference"] > 0.1 for r in found["rows"] if r["name"] == "Direct"} == {True}


@pytest.mark.bench
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_is_that_of_the_run_and_not_of_what_came_before(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    engines = importlib.import_module("engines")
    stored = [engines.in_fresh_process("many", "Reverse", steps, 1) for steps in (20, 60)]
    # Forty more steps are forty more states, within what the process itself may add.
    assert stored[1] - stored[0] == pytest.approx(40 * engines.STATE, rel=0.15)
