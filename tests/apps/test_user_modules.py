"""Models of the user's own: commands import what BILEVEL_IMPORT names, and nothing else."""

import sys
from pathlib import Path

import pytest

from bilevel_apps.cli import data as command_line
from bilevel_apps.config import parse_config
from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import make_task
from bilevel_apps.system.hardware import choose_device
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
    return make_task(config, (8, 8, 1), choose_device("cpu"))


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
    assert (status, err) == (2, "error: BILEVEL_IMPORT: other.py: no such file\n")


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
        make_task(config, (8, 8, 1), choose_device("cpu"))
    assert "own_model" not in sys.modules
    assert Path("own_model.py").exists()
