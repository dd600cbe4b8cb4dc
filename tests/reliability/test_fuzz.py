"""Fuzzing of all that reads what somebody else made: from a kept corpus, guided by coverage."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reliability.hostile_targets import CORPUS, TARGETS, kept
from reliability.own_memory import own_memory

FUZZER = Path(__file__).with_name("hostile_fuzz.py")
# Five seconds each in CI, ten minutes in the nightly test; the variable sets both.
SECONDS = int(os.environ.get("BILEVEL_FUZZ_SECONDS", "5"))
LONG = int(os.environ.get("BILEVEL_FUZZ_SECONDS", "600"))
MOST_KEPT_BYTES = 200_000


@pytest.mark.parametrize("name", TARGETS)
def test_good_input_is_read(name):
    """The seeds reach the end of the target, so that there is something to guide."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_kept_inputs(name):
    """What fuzzing has found to reach something new, and all that it ever found to be wrong."""
    assert kept(name)
    for path in kept(name):
        TARGETS[name].run(path.read_bytes())


def test_the_corpus_is_small():
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert sum(path.stat().st_size for name in TARGETS for path in kept(name)) < MOST_KEPT_BYTES


@st.composite
def edited(draw, name):
    """A seed of which some pieces were overwritten, cut out or repeated."""
    content = draw(st.sampled_from(TARGETS[name].seeds()))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.integers(0, 16))
        piece = draw(st.one_of(st.binary(max_size=16), st.just(content[at : at + size] * 2)))
        content = content[:at] + piece + content[at + size :]
    return content


@pytest.mark.parametrize("name", TARGETS)
@settings(suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_edited_input(name, data):
    TARGETS[name].run(data.draw(edited(name)))


def fuzz(name, seconds, folder):
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("needs atheris, the coverage-guided fuzzer")
    paths = [str(FUZZER.parent.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        own_memory([sys.executable, FUZZER, name, seconds, folder]),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    crashes = [path.name for path in folder.glob("*-*") if not path.name.startswith("seed-")]
    assert done.returncode == 0, (crashes, done.stdout[-1000:], done.stderr[-3000:])
    runs = re.search(r"stat::number_of_executed_units: *(\d+)", done.stderr)
    print(f"\n{name}: {runs[1]} inputs in {seconds} s")
    assert int(runs[1]) > 10


@pytest.mark.process
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz(name, tmp_path):
    fuzz(name, SECONDS, tmp_path)


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_fuzz_long(name, tmp_path):
    fuzz(name, LONG, tmp_path)
