"""`bilevel-tune`: what it refuses, what it saves, and that the examples beat their counterparts."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.tune import Tuning
from bilevel_apps.tune.engine_names import ENGINES, engine_named
from bilevel_apps.tune.folder import TuneFolder, arrays_of, next_folder
from bilevel_apps.tune.hyperparameters import load_hyperparameters
from bilevel_apps.tune.target import EXAMPLES, load_tuning
from bilevel_apps.tune.tune import TuneRequest, tune
from bilevel_core import (
    Forward,
    GradientDescent,
    Interval,
    Patience,
    Positive,
    Problem,
    Reverse,
    Truncated,
)

SHIFT = """
from functools import partial

import torch

from bilevel_apps.tune import Tuning
from bilevel_core import GradientDescent, Problem

TARGET = torch.tensor([3.0, -1.0], dtype=torch.float64)


def shift(rate: float = 0.5, steps: int = 20, note: str = "", *, strict: bool = False, slow=0.0):
    import time

    def outer(w, lam):
        time.sleep(slow)
        return 0.5 * ((w - TARGET) ** 2).sum()

    return Tuning(
        title="the minimiser of L is λ",
        problem=Problem(
            inner=lambda w, lam: 0.5 * ((w - lam) ** 2).sum(), outer=outer, init=torch.zeros_like
        ),
        dynamics=GradientDescent(step_size=0.5),
        lam=torch.zeros(2, dtype=torch.float64),
        steps=steps,
        outer_steps=5,
        optimizer=partial(torch.optim.SGD, lr=rate),
        report=lambda lam, w: {"distance": (w - TARGET).norm()},
        baseline=lambda: {"the target itself": {"distance": 0.0}},
    )


made = shift()
bare = made.problem
number = 3


def needs(seed):
    return shift()


def fails():
    raise RuntimeError("no data")


def returns_nothing():
    return None
"""

TARGET = np.array([3.0, -1.0])


@contextmanager
def tensors_of(folder):
    """What anybody reads from the file of a tuned λ."""
    yield load_file(folder / "hyperparameters.safetensors")


CONTRACTION = 1 - 0.5**20  # w_T = CONTRACTION · λ


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current directory with the module `shift_module`."""
    (tmp_path / "shift_module.py").write_text(SHIFT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("shift_module", None)


@pytest.fixture
def bilevel_tune(monkeypatch, capsys, here):
    """Run the command in this process; returns (status, stdout, stderr)."""
    from bilevel_apps.cli.tune import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bilevel-tune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


PROBLEM = "shift_module:shift"


def expected_history(steps=5, rate=0.5):
    """f_T, ‖∇f_T‖ and λ of gradient descent on ½ ‖CONTRACTION λ - target‖²."""
    lam, rows = np.zeros(2), []
    for _ in range(steps):
        gap = CONTRACTION * lam - TARGET
        slope = CONTRACTION * gap
        rows.append((0.5 * gap @ gap, np.linalg.norm(slope), lam))
        lam = lam - rate * slope
    return rows


def test_what_a_run_leaves(bilevel_tune, here):
    status, _, err = bilevel_tune(PROBLEM, "--no-track", "--out", "found")
    assert status == 0, err
    assert err.splitlines()[0] == "the minimiser of L is λ"
    folder = here / "found"
    assert sorted(p.name for p in folder.iterdir() if p.name != ".lock") == [
        "figures.json",
        "history.json",
        "history.png",
        "hyperparameters.safetensors",
    ]
    history = json.loads((folder / "history.json").read_text())
    rows = expected_history()
    assert [record["index"] for record in history] == list(range(5))
    assert [r["value"] for r in history] == pytest.approx([v for v, _, _ in rows], rel=1e-12)
    assert [r["grad_norm"] for r in history] == pytest.approx([n for _, n, _ in rows], rel=1e-12)
    np.testing.assert_allclose([r["lam"]["lam"] for r in history], [lam for _, _, lam in rows])
    seconds = [record["seconds"] for record in history]
    assert seconds == sorted(seconds)
    with tensors_of(folder) as arrays:
        assert list(arrays) == ["lam"]
        np.testing.assert_allclose(arrays["lam"], rows[-1][2], rtol=1e-12)
    assert (folder / "history.png").read_bytes()[:4] == b"\x89PNG"


def test_the_figures(bilevel_tune, here):
    status, out, _ = bilevel_tune(PROBLEM, "--no-track", "--out", "found", "--set", "rate=0.25")
    assert status == 0
    document = json.loads((here / "found" / "figures.json").read_text())
    rows = expected_history(rate=0.25)
    figures = document["figures"]
    assert figures["start"]["distance"] == pytest.approx(np.linalg.norm(TARGET))
    assert figures["tuned"]["outer objective"] == pytest.approx(rows[-1][0])
    assert figures["tuned"]["distance"] == pytest.approx((2 * rows[-1][0]) ** 0.5)
    assert figures["the target itself"] == {"distance": 0.0}
    assert (document["stopped"], document["hyper_iterations"], document["kept"]) == (
        "outer_steps",
        5,
        4,
    )
    assert document["settings"] == {"rate": "0.25"}
    table = out.splitlines()
    assert table[0].split() == ["outer", "objective", "distance"]
    assert [line.split("  ")[0] for line in table[1:4]] == ["start", "tuned", "the target itself"]
    assert table[3].split()[-1] == "0"


def test_json_is_the_saved_document(bilevel_tune, here):
    status, out, _ = bilevel_tune(PROBLEM, "--no-track", "--out", "found", "--json")
    assert status == 0
    assert json.loads(out) == json.loads((here / "found" / "figures.json").read_text())


def test_steps_and_engine_can_be_changed(bilevel_tune, here):
    words = ["--no-track", "--out", "found", "--steps", 3, "--outer-steps", 2]
    status, _, err = bilevel_tune(PROBLEM, *words, "--engine", "forward:1")
    assert status == 0, err
    document = json.loads((here / "found" / "figures.json").read_text())
    assert document["engine"] == "Forward(chunk=1)"
    assert (document["steps"], document["hyper_iterations"]) == (3, 2)
    history = json.loads((here / "found" / "history.json").read_text())
    assert history[0]["grad_norm"] == pytest.approx((1 - 0.5**3) * np.linalg.norm(TARGET))


@pytest.mark.parametrize("engine", [*sorted(set(ENGINES) - {"truncated"}), "truncated:2", "online"])
def test_every_engine_name_runs(bilevel_tune, here, engine):
    status, _, err = bilevel_tune(PROBLEM, "--no-track", "--out", "found", "--engine", engine)
    assert status == 0, err
    history = json.loads((here / "found" / "history.json").read_text())
    if engine == "direct":  # E does not depend on λ but through w
        assert history[0]["grad_norm"] == 0
    else:
        assert history[-1]["value"] < history[0]["value"]
    assert len(history) == (20 if engine == "online" else 5)


def test_a_file_and_its_neighbours(bilevel_tune, here):
    below = here / "below"
    below.mkdir()
    (below / "neighbour.py").write_text("RATE = 0.125\n")
    text = f"{SHIFT}\nfrom neighbour import RATE\n\n\ndef near(): return shift(rate=RATE)\n"
    (below / "own.py").write_text(text)
    status, _, err = bilevel_tune("below/own.py:near", "--no-track", "--out", "found")
    assert status == 0, err
    history = json.loads((here / "found" / "history.json").read_text())
    np.testing.assert_allclose(history[1]["lam"]["lam"], 0.125 * CONTRACTION * TARGET)


def test_the_example_of_the_readme(bilevel_tune, here):
    readme = Path(__file__).parents[2] / "docs" / "how-to" / "tune-your-own-problem.md"
    (text,) = re.findall(r"```python\n(.*?)```", readme.read_text("utf-8"), re.DOTALL)
    (here / "ridge.py").write_text(text, "utf-8")
    words = ["--engine", "implicit", "--outer-steps", 20, "--json"]
    status, out, err = bilevel_tune("ridge.py:ridge", "--no-track", "--set", "seed=3", *words)
    assert status == 0, err
    figures = json.loads(out)["figures"]
    assert figures["tuned"]["test error"] < figures["start"]["test error"]
    assert figures["tuned"]["outer objective"] < figures["start"]["outer objective"]


JAX = """
import jax.numpy as jnp
import optax
from bilevel_apps.tune import Tuning
from bilevel_core import GradientDescent, Problem

made = Tuning(
    problem=Problem(
        inner=lambda w, lam: 0.5 * ((w - lam["to"]) ** 2).sum(),
        outer=lambda w, lam: 0.5 * ((w - 3.0) ** 2).sum(),
        init=lambda lam: jnp.zeros_like(lam["to"]),
    ),
    dynamics=GradientDescent(step_size=0.5),
    lam={"to": jnp.zeros(2)},
    steps=20,
    outer_steps=3,
    optimizer=optax.sgd(0.5),
)
"""


@pytest.mark.jax
@pytest.mark.process
def test_another_framework(here):
    pytest.importorskip("jax")
    pytest.importorskip("optax")
    (here / "other.py").write_text(JAX)
    words = [sys.executable, "-m", "bilevel_apps.cli.tune", "other.py:made", "--no-track"]
    done = subprocess.run([*words, "--out", "found"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tensors_of(here / "found") as arrays:
        np.testing.assert_allclose(arrays["to"], 3 * (1 - 0.5**2), rtol=1e-5)


def test_folders_are_numbered(bilevel_tune, here):
    for number in (1, 2):
        status, out, _ = bilevel_tune(PROBLEM, "--no-track", "--outer-steps", 1)
        assert status == 0
        assert out.splitlines()[-1].startswith(f"in runs/tune-shift-{number}: ")
        assert (here / "runs" / f"tune-shift-{number}" / "history.json").exists()
    assert next_folder("shift").name == "tune-shift-3"


REFUSALS = [
    (["nonsense"], "nonsense: expected MODULE:PROBLEM, FILE.py:PROBLEM or one of diabetes,"),
    (["nowhere:x"], "nowhere:x: no module nowhere, here or installed"),
    (["nowhere.py:x"], "nowhere.py: no such file"),
    (["shift_module:shfit"], "shift_module has no shfit; it has made"),
    (
        ["shift_module:number"],
        "expected a bilevel_apps.tune.Tuning, or a function that returns one",
    ),
    (["shift_module:number"], "found int"),
    (["shift_module:bare"], "is a bilevel_core.Problem, which says neither where λ starts nor"),
    (["shift_module:returns_nothing"], "found NoneType"),
    (["shift_module:fails"], "shift_module:fails: failed with RuntimeError: no data"),
    (["shift_module:needs"], "seed has no default: add --set seed=VALUE"),
    (["shift_module:made", "--set", "rate=1"], "is not a function, so nothing can be set"),
    ([PROBLEM, "--set", "rat=1"], "unknown key rat; shift_module:shift takes: rate, steps, note"),
    ([PROBLEM, "--set", "rate"], "--set rate: expected KEY=VALUE"),
    ([PROBLEM, "--set", "rate=fast"], "--set rate=fast: expected a number, found 'fast'"),
    ([PROBLEM, "--set", "steps=1.5"], "--set steps=1.5: expected int, found 1.5"),
    ([PROBLEM, "--set", "steps=true"], "expected int, found True"),
    ([PROBLEM, "--set", "strict=1"], "expected bool, found 1"),
    ([PROBLEM, "--set", "rate=[1]"], "expected a single value, found a list"),
    ([PROBLEM, "--set", "rate=["], "not valid YAML"),
    ([PROBLEM, "--set", "steps=-1"], "shift: steps must be at least 0, found -1"),
    ([PROBLEM, "--engine", "backward"], "--engine backward: no such engine; choose one of reverse"),
    ([PROBLEM, "--engine", "truncated"], "needs a number, such as truncated:20"),
    ([PROBLEM, "--engine", "truncated:0"], "horizon must be at least 1, found 0"),
    ([PROBLEM, "--engine", "truncated:x"], "--engine truncated:x: invalid literal"),
    ([PROBLEM, "--engine", "reverse:3"], "reverse takes no number"),
    ([PROBLEM, "--engine", "online", "--outer-steps", 3], "--outer-steps 3: an online run"),
    ([PROBLEM, "--engine", "online", "--steps", 0], "an online run of 0 steps"),
    ([PROBLEM, "--steps", -1], "'--steps'"),
    ([PROBLEM, "--outer-steps", 0], "'--outer-steps'"),
    ([PROBLEM, "--threads", 0], "'--threads'"),
    (["--no-track"], "nothing to tune: give MODULE:NAME or one of diabetes, digits, schedules"),
]


@pytest.mark.parametrize(("words", "says"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals(bilevel_tune, here, words, says):
    status, out, err = bilevel_tune(*words)
    last = err.splitlines()[-1]
    assert status == 2, err
    assert last.startswith("error: ")
    assert says in last
    assert out == ""
    assert "Traceback" not in err
    assert not (here / "runs").exists()


def test_a_module_that_cannot_be_imported(bilevel_tune, here):
    (here / "broken.py").write_text("x = 1 +")
    (here / "lacking.py").write_text("import no_such_package")
    for place in ("broken", "broken.py"):
        status, _, err = bilevel_tune(f"{place}:x")
        assert (status, "cannot be imported (SyntaxError: " in err) == (2, True)
    status, _, err = bilevel_tune("lacking:x")
    assert (status, "imports no_such_package, which is missing" in err) == (2, True)


def test_a_tuning_is_kept(bilevel_tune, here):
    assert bilevel_tune(PROBLEM, "--no-track", "--out", "found")[0] == 0
    before = (here / "found" / "history.json").read_bytes()
    status, _, err = bilevel_tune(PROBLEM, "--no-track", "--out", "found")
    assert status == 2
    assert err == "error: found: holds a tuning already: choose another --out\n"
    assert (here / "found" / "history.json").read_bytes() == before


def test_a_run_of_training_is_kept(bilevel_tune, here):
    (here / "found").mkdir()
    (here / "found" / "config.yaml").write_text("seed: 0\n")
    status, _, err = bilevel_tune(PROBLEM, "--no-track", "--out", "found")
    assert (status, "holds a run of bilevel-train" in err) == (2, True)


def test_a_folder_that_cannot_be_made(bilevel_tune, here):
    (here / "file").write_text("kept")
    status, _, err = bilevel_tune(PROBLEM, "--no-track", "--out", "file/below")
    assert (status, "cannot write to this folder (Not a directory)" in err) == (2, True)
    status, _, err = bilevel_tune(PROBLEM, "--no-track", "--out", "x" * 300)
    assert (status, "cannot write to this folder (File name too long)" in err) == (2, True)
    (here / "runs").write_text("kept")
    status, _, err = bilevel_tune(PROBLEM, "--no-track")
    assert (status, "cannot make this folder" in err) == (2, True)


def test_list_and_help(bilevel_tune):
    status, out, err = bilevel_tune("--list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == list(EXAMPLES)
    status, out, err = bilevel_tune("--help")
    assert (status, err) == (0, "")
    for word in [*EXAMPLES, *ENGINES, "online", "--engine", "--set", "--no-track", "--debug"]:
        assert word in out
    assert bilevel_tune()[1] == out


@pytest.mark.process
def test_help_is_light():
    code = (
        "import sys\n"
        "from bilevel_apps.cli.tune import main\n"
        "sys.argv = ['x', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'mlflow', 'matplotlib', 'h5py', 'sklearn'} & set(sys.modules)\n"
        "print(*sorted(heavy), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == ""


def quadratic(**changes):
    """½ (w - λ)² towards 2, λ a dict of two scalars."""
    settings = {
        "problem": Problem(
            inner=lambda w, lam: 0.5 * (w - lam["a"] * lam["b"]) ** 2,
            outer=lambda w, lam: 0.5 * (w - 2) ** 2,
            init=lambda lam: 0 * lam["a"],
        ),
        "dynamics": GradientDescent(step_size=0.5),
        "lam": {k: torch.tensor(1.0, dtype=torch.float64) for k in "ab"},
        "steps": 10,
        "outer_steps": 8,
        "optimizer": partial(torch.optim.SGD, lr=0.1),
    }
    return Tuning(**(settings | changes))


def run(tuning, folder):
    return tune(tuning, TuneRequest(name="quadratic", out=folder, track=False))


def test_constraints_and_stopping_are_handed_on(tmp_path):
    sets = {"a": Interval(low=0.5, high=1.1), "b": None}
    tuning = quadratic(project=sets, stop=Patience(steps=1, min_improvement=1e-8), outer_steps=200)
    document = run(tuning, tmp_path / "run")
    assert document["stopped"] == "stop"
    assert document["hyper_iterations"] < 200
    with tensors_of(tmp_path / "run") as arrays:
        assert arrays["a"] == 1.1
        assert arrays["a"] * arrays["b"] == pytest.approx(2, rel=1e-2)
    with pytest.raises(InputError, match=r"quadratic: λ\['a'\] starts at 1.*strictly inside"):
        run(quadratic(reparametrize={"a": Interval(low=1, high=2), "b": None}), tmp_path / "other")


def test_the_best_and_not_the_last_is_kept(tmp_path):
    climbing = partial(torch.optim.SGD, lr=0.05, maximize=True)
    document = run(quadratic(optimizer=climbing), tmp_path / "run")
    assert document["kept"] == 0
    assert document["figures"]["tuned"] == document["figures"]["start"]
    with tensors_of(tmp_path / "run") as arrays:
        assert arrays["a"] == 1


def test_an_online_run_keeps_its_last(tmp_path):
    document = run(quadratic(online=True, steps=31, every=5), tmp_path / "run")
    assert (document["engine"], document["every"]) == ("online", 5)
    assert (document["hyper_iterations"], document["kept"]) == (6, 5)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert {key for record in history for key in record["lam"]} == {"a", "b"}
    with tensors_of(tmp_path / "run") as arrays:
        assert arrays["a"] > history[-1]["lam"]["a"] > 1
    assert document["figures"]["tuned"]["outer objective"] < history[-1]["value"]


def test_a_problem_of_the_hyper_iteration(tmp_path):
    whole = quadratic()
    seen = []

    def problem(index):
        seen.append(index)
        return whole.problem

    found = run(quadratic(problem=problem, outer_steps=3), tmp_path / "run")
    assert set(seen) == {0, 1, 2}
    assert found["figures"] == run(quadratic(outer_steps=3), tmp_path / "same")["figures"]
    with pytest.raises(TypeError, match="online run is one inner run"):
        quadratic(problem=problem, online=True)


@pytest.mark.parametrize("field", ["outer_steps", "every"])
def test_counts_are_checked(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 1, found 0"):
        quadratic(**{field: 0})


def test_divergence_saves_what_was_reached(tmp_path):
    """λ grows until the inner step size is too large."""
    tuning = Tuning(
        problem=Problem(
            inner=lambda w, lam: 0.5 * (w - 1) ** 2,
            outer=lambda w, lam: 0.5 * w**2 - 5 * lam,
            init=lambda lam: 0 * lam,
        ),
        dynamics=GradientDescent(step_size=lambda lam, t: lam),
        lam=torch.tensor(0.5, dtype=torch.float64),
        steps=400,
        outer_steps=50,
        optimizer=partial(torch.optim.SGD, lr=0.05),
    )
    with pytest.raises(RunError, match=r"quadratic: the inner run.*keeps the \d+ hyper-iter"):
        run(tuning, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert 0 < len(history) < 50
    with tensors_of(tmp_path / "run") as arrays:
        assert arrays["lam"] == history[-1]["lam"]["lam"]


def test_a_drawing_that_fails_costs_a_warning(tmp_path, capsys):
    def draw(figure, lam, records):
        raise KeyError("colour")

    run(quadratic(draw=draw), tmp_path / "run")
    assert "warning: the picture lacks its right half (KeyError: 'colour')" in (
        capsys.readouterr().err
    )
    assert (tmp_path / "run" / "history.png").stat().st_size > 1000


def test_large_trees_are_left_out_of_the_history(tmp_path):
    lam = {"a": torch.ones(20, dtype=torch.float64), "b": torch.ones(20, dtype=torch.float64)}
    tuning = quadratic(
        problem=Problem(
            inner=lambda w, lam: 0.5 * ((w - lam["a"] * lam["b"]) ** 2).sum(),
            outer=lambda w, lam: 0.5 * ((w - 2) ** 2).sum(),
            init=lambda lam: 0 * lam["a"],
        ),
        lam=lam,
    )
    run(tuning, tmp_path / "run")
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert all(record["lam"] is None for record in history)


def test_leaves_are_named_by_their_place():
    one = torch.tensor(1.0)
    tree = {"layers": [{"decay": one}, (2 * one, 3 * one)], "rate": 4 * one}
    named = {key: float(value) for key, value in arrays_of(tree).items()}
    assert named == {"layers.0.decay": 1, "layers.1.0": 2, "layers.1.1": 3, "rate": 4}
    assert list(arrays_of(one)) == ["lam"]


def test_engine_names():
    assert engine_named("truncated:7") == Truncated(horizon=7)
    assert engine_named("forward:2") == Forward(chunk=2)
    assert engine_named("reverse") == Reverse()


def test_settings_are_read_as_yaml(here):
    tuning = load_tuning(PROBLEM, ["rate=1e-3", "steps=7", "strict=true", "note=x", "slow=0"])
    assert tuning.steps == 7
    assert tuning.optimizer.keywords == {"lr": 0.001}


@pytest.mark.process
def test_interrupted(here):
    """Ctrl-C after the first hyper-iterations: all files are there, and the status is 130."""
    words = [sys.executable, "-m", "bilevel_apps.cli.tune", PROBLEM, "--no-track"]
    words += ["--out", "found", "--outer-steps", "10000", "--set", "slow=0.02"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr.readline() == "the minimiser of L is λ\n"
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    assert "finishing this hyper-iteration and saving" in err
    document = json.loads((here / "found" / "figures.json").read_text())
    history = json.loads((here / "found" / "history.json").read_text())
    assert document["stopped"] == "interrupted"
    assert 0 < document["hyper_iterations"] == len(history) < 10000
    assert document["figures"].keys() == {"start", "tuned"}
    assert f"stopped after hyper-iteration {len(history)} of 10000" in err
    assert all(path.exists() for path in _files(TuneFolder(here / "found")))


def _files(folder):
    return folder.history, folder.hyperparameters, folder.figures, folder.picture


@pytest.mark.process
@pytest.mark.filterwarnings("default")  # MLflow's own are not ours to mend
def test_tracking(here, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    words = [sys.executable, "-m", "bilevel_apps.cli.tune", PROBLEM, "--out", "runs/found"]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ, check=True)
    assert "warning" not in done.stderr
    known = json.loads((here / "runs" / "found" / "tracking.json").read_text())
    client = mlflow.MlflowClient(known["uri"])
    found = client.get_run(known["run_id"])
    assert client.get_experiment(found.info.experiment_id).name == "tune shift"
    assert (found.info.run_name, found.info.status) == ("found", "FINISHED")
    assert found.data.params["engine"] == str(Reverse())
    history = json.loads((here / "runs" / "found" / "history.json").read_text())
    logged = client.get_metric_history(known["run_id"], "outer/value")
    assert [m.value for m in logged] == [record["value"] for record in history]
    assert [m.step for m in logged] == [1, 2, 3, 4, 5]
    assert found.data.metrics["start/distance"] == pytest.approx(np.linalg.norm(TARGET))
    names = {entry.path for entry in client.list_artifacts(known["run_id"])}
    assert names == {"history.json", "hyperparameters.safetensors", "figures.json", "history.png"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(tmp_path, name):
    """Two hyper-iterations of each, with its report, counterparts and picture."""
    from dataclasses import replace

    tuning = load_tuning(name, ["steps=20"] if name == "schedules" else [])
    steps = 10 if name == "schedules" else tuning.steps
    document = run(replace(tuning, outer_steps=2, steps=steps), tmp_path / name)
    assert len(document["figures"]) > 2
    assert document["hyper_iterations"] == 2
    assert (tmp_path / name / "history.png").stat().st_size > 10_000


def test_examples_refuse_impossible_splits():
    with pytest.raises(InputError, match=r"trusted=2000 and wrong=0\.5 leave nothing of 1797"):
        load_tuning("digits", ["trusted=2000"])


@pytest.mark.nightly
def test_diabetes_beats_a_single_penalty(tmp_path):
    rows = run(load_tuning("diabetes"), tmp_path / "run")["figures"]
    key = "test mean squared error"
    assert rows["tuned"][key] < rows["RidgeCV on the same columns"][key]
    assert rows["tuned"][key] < rows["RidgeCV on the features alone"][key]
    assert rows["tuned"][key] < rows["start"][key]


@pytest.mark.nightly
def test_digits_beat_a_regression_on_the_corrupted_labels(tmp_path):
    rows = run(load_tuning("digits"), tmp_path / "run")["figures"]
    key, refitted = "test error %", "refitted, test error %"
    assert rows["tuned"][key] < rows["LogisticRegression on the training examples"][key] / 2
    assert rows["tuned"][key] < rows["start"][key] / 4
    both = rows["LogisticRegression on training and trusted ones"]
    assert rows["tuned"][refitted] < both[refitted] / 2
    assert rows["tuned"][refitted] <= rows["LogisticRegression on the trusted ones"][refitted]
    with tensors_of(tmp_path / "run") as arrays:
        assert arrays["lam"].shape == (1000,)
        assert 0 <= arrays["lam"].min() <= arrays["lam"].max() <= 1


@pytest.mark.slow
def test_schedules_beat_constants(tmp_path):
    rows = run(load_tuning("schedules"), tmp_path / "run")["figures"]
    for key in ("test error %", "test loss"):
        assert rows["tuned"][key] < rows["start"][key]


def test_positive_start_is_needed(tmp_path):
    lam = {"a": torch.tensor(-1.0, dtype=torch.float64), "b": torch.tensor(1.0).double()}
    with pytest.raises(InputError, match=r"starts at -1, which is not strictly inside"):
        run(quadratic(lam=lam, reparametrize=Positive()), tmp_path / "run")


TREES = {
    "bfloat16": {"rate": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)},
    "a separator in the keys": {"a.b": torch.tensor(1.0), "a": {"b": torch.tensor(2.0)}},
    "brackets and other scripts": {"['x']": [torch.ones(2, 3)], "学习率": (torch.zeros(()),)},
    "numbers for keys": {0: torch.tensor(1.0), "0": torch.tensor(2.0)},
    "a leaf alone": torch.tensor([1.0, 2.0], dtype=torch.float64),
    "kinds": {"a": 0.1, "b": np.float32([1, 2]), "c": (), "d": [], "e": torch.tensor(3)},
}


@pytest.mark.parametrize("case", TREES)
def test_every_tree_comes_back_equal(case, tmp_path):
    tree = TREES[case]
    TuneFolder(tmp_path).save_hyperparameters(tree)
    found = load_hyperparameters(tmp_path / "hyperparameters.safetensors")

    def same(ours, theirs):
        assert type(ours) is type(theirs)
        if isinstance(ours, dict):
            assert list(ours) == list(theirs)
            assert all(same(ours[key], theirs[key]) for key in ours)
        elif isinstance(ours, list | tuple):
            assert len(ours) == len(theirs)
            assert all(map(same, ours, theirs))
        else:
            assert getattr(ours, "dtype", None) == getattr(theirs, "dtype", None)
            assert np.shape(ours) == np.shape(theirs)
            assert bool((ours == theirs).all() if hasattr(ours, "all") else ours == theirs)
        return True

    assert same(tree, found)
    assert len(arrays_of(tree)) == len(list(load_file(tmp_path / "hyperparameters.safetensors")))


def test_leaves_of_jax_come_back_equal(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    tree = {"w": jnp.arange(3, dtype=jnp.bfloat16), "b": jnp.float32(2)}
    TuneFolder(tmp_path).save_hyperparameters(tree)
    found = load_hyperparameters(tmp_path / "hyperparameters.safetensors")
    for key, leaf in tree.items():
        assert found[key].dtype == leaf.dtype
        assert (found[key] == leaf).all()


def test_other_files_are_no_hyperparameters(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"no tensors")
    save_file({"a": torch.ones(1)}, tmp_path / "y.safetensors")
    for name in ("x", "y", "none"):
        with pytest.raises(InputError, match="not hyperparameters of bilevel-tune"):
            load_hyperparameters(tmp_path / f"{name}.safetensors")
