"""A network of timm through every command that takes a run."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from bilevel_apps.errors import InputError
from bilevel_apps.evaluate.evaluate import EvaluationRequest, evaluate_run
from bilevel_apps.predict.export import export_run
from bilevel_apps.predict.predict import PredictRequest, predict_pictures
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.training.loop import train
from bilevel_data import open_store
from bilevel_models.backbones.torchvision_library import torchvision_module

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is an extra"),
]


def test_a_network_of_timm(tmp_path, config, store):
    """Published weights from a file, trained, resumed, scored, used and exported."""
    torchvision_module("torchvision")
    timm = importlib.import_module("timm")
    weights = tmp_path / "published.safetensors"
    tensors = timm.create_model("resnet18", num_classes=7).state_dict()
    save_file(tensors, weights)
    settings = {
        "model__name": "timm:resnet18",
        "model__filters": None,
        "model__weights": str(weights),
        "train__validate_every": 1,
        "train__validate_episodes": 2,
    }
    folder = tmp_path / "run"
    train(config(train__steps=1, **settings), folder, resume=False)
    longer = config(train__steps=2, **settings)
    train(RunFolder(folder).continued(longer), folder, resume=True)
    assert load_checkpoint(folder / "last.safetensors").record["step"] == 2
    report = evaluate_run(folder, EvaluationRequest(episodes=2, device="cpu"))
    assert 0 <= report.score.accuracy <= 1
    images = open_store(store).load("test").images.reshape(6, 20, 16, 16)
    for c in range(2):
        (tmp_path / "support" / f"c{c}").mkdir(parents=True)
        Image.fromarray(images[c, 0]).save(tmp_path / "support" / f"c{c}" / "0.png")
    Image.fromarray(images[0, 1]).save(tmp_path / "query.png")
    found = predict_pictures(
        folder, PredictRequest(support=tmp_path / "support", query=tmp_path / "query.png")
    )
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert export_run(folder, tmp_path / "program.pt2", way=2).difference <= 1e-5
    save_file({"x": tensors["conv1.weight"]}, weights)
    with pytest.raises(InputError, match="the weights are not this model's"):
        train(config(train__steps=1, **settings), tmp_path / "other", resume=False)
