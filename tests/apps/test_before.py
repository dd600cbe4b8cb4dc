"""Files that commit 0ce31c7 wrote, before the modules were moved: they open, and score the same.

`before/` has a store of 240 characters of the built-in glyphs, a run of 30 hyper-iterations on it
(`run/`), its checkpoint at half way (`half/`), and what `bilevel-eval --json` printed of it.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.training.loop import train
from bilevel_data import open_store, verify_store

BEFORE = Path(__file__).parent / "before"
STORE = BEFORE / "glyphs.h5"
REQUESTS = {
    "test": {"baselines": True},
    "val": {"split": "val", "steps": (1, 3, 8), "lr": (0.05, 0.1)},
    "transductive": {"shot": 3, "norm": "episode"},
}


def test_the_store_opens():
    verify_store(STORE)
    store = open_store(STORE)
    assert store.manifest.name == "glyphs"
    assert store.load("train").images.shape == (120, 14, 14, 1)


def part(found, wanted):
    """What is found where something is wanted; there may be more now."""
    if isinstance(wanted, list):
        return [part(*pair) for pair in zip(found, wanted, strict=True)]
    if not isinstance(wanted, dict):
        return found
    return {key: part(found[key], value) for key, value in wanted.items()}


@pytest.mark.parametrize("name", REQUESTS)
def test_the_run_scores_to_the_last_digit(name, tmp_path):
    run = shutil.copytree(BEFORE / "run", tmp_path / "run")
    request = EvaluationRequest(data=STORE, episodes=100, **REQUESTS[name])
    found = evaluate_run(run, request).as_json()
    wanted = json.loads((BEFORE / f"{name}.json").read_text("utf-8"))
    del wanted["checkpoint"]  # where it lay
    assert part(found, wanted) == wanted


def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    folder = RunFolder(shutil.copytree(BEFORE / "half", tmp_path / "half"))
    config = folder.load_config().model_copy(update={"data": str(STORE)})
    train(config, folder.path, resume=True)
    found, wanted = load_checkpoint(folder.last), load_checkpoint(BEFORE / "run/last.safetensors")
    assert found.tensors.keys() == wanted.tensors.keys()
    for name, tensor in wanted.tensors.items():  # another processor may round otherwise
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-4, atol=1e-5)
    assert found.record["best_step"] == wanted.record["best_step"]
