"""Models of the user's own: commands import what BILEVEL_IMPORT names, and nothing else."""

import sys
from pathlib import Path

import pytest

from bilevel_apps.cli import data as command_line
from bilevel_apps.config import parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import make_learner
from bilevel_apps.runs.load import load_run
from bilevel_apps.system.hardware import choose_device
from bilevel_apps.system.plugins import import_asked
from bilevel_apps.training.loop import train
from bilevel_data import open_store
from bilevel_meta import registry as learners
from bilevel_meta.methods.anil import Anil
from bilevel_models import registry

OWN = """
import torch
from bilevel_models import register_model


class Tiny(torch.nn.Module):
    def __init__(self, channels, image_size):
        super().__init__()
        self.dim = 3
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(channels * image_size**2, self.dim)
        )

    def forward(self, images, statistics):
        return self.layers(images)


register_model("tiny", Tiny)
"""

METHOD = """
import torch

from bilevel_meta import HeadLearner, evaluate, register_learner
from own_model import Tiny


class Scaled(HeadLearner):
    def __init__(self, backbone, *, scale=4.0, **encoding):
        super().__init__(backbone, **encoding)
        self.log_scale = torch.nn.Parameter(torch.tensor(scale).log())

    def fit_head(self, features, labels, way):
        chosen = torch.nn.functional.one_hot(labels, way).to(features)
        means = chosen.mT @ features / chosen.sum(dim=1).unsqueeze(-1)
        weight = 2 * self.log_scale.exp() * means.mT
        bias = -self.log_scale.exp() * means.square().sum(dim=-1).unsqueeze(1)
        return {"weight": weight, "bias": bias}


register_learner("scaled", Scaled)


def loop(store, steps):
    learner = Scaled(Tiny(1, 16), scale=2.0)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1)
    for batch in store.episodes("train", way=4, query=3).batches(2, steps=steps):
        optimizer.zero_grad()
        learner.loss(batch).backward()
        optimizer.step()
    return learner, evaluate(learner, store.episodes("test", way=4, query=3), episodes=4)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command in a folder that has the module; returns (status, stdout, stderr)."""
    (tmp_path / "own_model.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})

    def run(asked):
        monkeypatch.setenv("BILEVEL_IMPORT", asked)
        monkeypatch.setattr(sys, "argv", ["bilevel-data", "--help"])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code, *capsys.readouterr()

    return run


def task():
    config = parse_config({"data": "x.h5", "model": {"name": "tiny"}}, "test")
    return make_learner(config, (8, 8, 1), choose_device("cpu"))


@pytest.mark.parametrize("asked", ["own_model", "own_model.py", " , own_model,"])
def test_a_model_of_ones_own(command, asked):
    assert command(asked)[0] == 0
    assert task().encoder.backbone.dim == 3


def test_without_it_the_model_is_not_known_and_the_way_is_told(command):
    assert command("")[0] == 0
    with pytest.raises(InputError, match=r"no model 'tiny'.* a module that BILEVEL_IMPORT names"):
        task()


def test_a_module_that_is_not_there_is_one_line(command):
    status, out, err = command("own_model,other")
    assert (status, out) == (2, "")
    assert err.startswith("error: BILEVEL_IMPORT: no module other, here or installed")
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_there_names_the_variable(command):
    status, _, err = command("other.py")
    assert status == 2
    assert err.startswith("error: BILEVEL_IMPORT: other.py: no such file")


def test_a_module_that_exits_is_told(command, tmp_path):
    (tmp_path / "leaver.py").write_text("import sys; sys.exit(0)")
    status, out, err = command("leaver.py")
    assert (status, out) == (2, "")
    assert err.startswith("error: BILEVEL_IMPORT: leaver.py cannot be imported (SystemExit: 0)")


def test_a_file_is_run_once(command):
    assert command("own_model.py,own_model.py")[0] == 0


def test_a_file_of_a_run_names_no_code(command, tmp_path):
    """The name of a model in a checkpoint or a configuration imports nothing."""
    config = parse_config({"data": "x.h5", "model": {"name": "own_model:Tiny"}}, "test")
    with pytest.raises(InputError, match="no model 'own_model:Tiny'"):
        make_learner(config, (8, 8, 1), choose_device("cpu"))
    assert "own_model" not in sys.modules
    assert Path("own_model.py").exists()


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A folder with a backbone, a method and a loop; what they register is taken back."""
    (tmp_path / "own_model.py").write_text(OWN)
    (tmp_path / "own_method.py").write_text(METHOD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))
    monkeypatch.setenv("BILEVEL_IMPORT", "own_method.py")
    yield
    learners._LEARNERS.pop("scaled", None)
    for name in ("own_model", "own_method"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("own_files")
def test_a_backbone_a_method_and_a_loop_come_from_one_file(config, store, tmp_path):
    chosen = {"method": "scaled", "model__name": "tiny", "options": {"scale": 3.0}}
    with pytest.raises(InputError, match="method: input should be 'hyper-representation'"):
        config(**chosen)
    import_asked()
    train(config(**chosen, train__steps=2, model__filters=None), tmp_path / "run", resume=False)
    run = load_run(tmp_path / "run", "cpu")
    assert type(run.learner).__name__ == "Scaled"
    assert run.learner.log_scale.exp().item() == pytest.approx(3.0, rel=0.2)
    learner, score = sys.modules["own_method"].loop(open_store(store), steps=2)
    assert learner.log_scale.exp().item() != 2.0
    assert 0 <= score.accuracy <= 1


@pytest.mark.parametrize(
    ("name", "kind", "error"),
    [("anil", Anil, ValueError), ("approx", Anil, ValueError), ("mine", int, TypeError)],
)
def test_what_cannot_be_registered_is_refused(name, kind, error):
    with pytest.raises(error, match=r"choose another name|no subclass of Learner"):
        learners.register_learner(name, kind)
