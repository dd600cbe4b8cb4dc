"""A training that begins with the weights of another, and what cannot be begun with."""

import pytest
import torch
from safetensors.torch import save_file

from bilevel_apps.errors import InputError
from bilevel_apps.runs.build import model_tensors, part_of
from bilevel_apps.runs.checkpoint import load_checkpoint
from bilevel_apps.runs.folder import RunFolder
from bilevel_apps.runs.weights import load_backbone
from bilevel_apps.system.processes import ALONE
from bilevel_apps.training.loop import train
from bilevel_apps.training.prepare import prepare
from bilevel_data import open_store
from bilevel_models import create_model, pretrained_card, pretrained_weights


def backbone(filters=4):
    torch.manual_seed(1)
    return create_model("omniglot-net", filters=filters, image_size=16)


def learned(run):
    return part_of(model_tensors(load_checkpoint(run / "best.safetensors").tensors), "backbone")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def plain(tmp_path, trained):
    path = tmp_path / "plain.safetensors"
    save_file(learned(trained), path)
    return path


def test_a_run_a_checkpoint_and_a_plain_file_give_the_same_weights(trained, plain):
    for source in (trained, trained / "best.safetensors", plain):
        network = backbone()
        assert not equal(network.state_dict(), learned(trained))
        load_backbone(network, str(source))
        assert equal(network.state_dict(), learned(trained))


def test_weights_of_the_package():
    network = create_model("omniglot-net", image_size=28)
    load_backbone(network, "pretrained:omniglot-5way-1shot")
    card = pretrained_card("omniglot-5way-1shot")
    assert equal(network.state_dict(), dict(pretrained_weights(card)))


def test_training_begins_with_them_and_resumes_without_them(tmp_path, config, plain, trained):
    chosen = config(model__weights=str(plain), train__average=0.5)
    opened, device = open_store(chosen.data), torch.device("cpu")
    begun = prepare(chosen, RunFolder(tmp_path / "new"), opened, device, ALONE)
    for task in (begun.learner, begun.scored):
        assert equal(task.backbone.state_dict(), learned(trained))
    train(chosen.model_copy(), tmp_path / "run", resume=False)
    plain.unlink()
    folder = RunFolder(tmp_path / "run")
    longer = folder.load_config()
    longer = longer.model_copy(update={"train": longer.train.model_copy(update={"steps": 7})})
    train(longer, folder.path, resume=True)
    assert load_checkpoint(folder.last).record["step"] == 7


def test_what_does_not_fit_is_refused(tmp_path, trained, plain):
    with pytest.raises(InputError, match=r"of shape .* there and of shape .* in this network"):
        load_backbone(backbone(filters=8), str(trained))
    with pytest.raises(InputError, match="no such checkpoint"):
        load_backbone(backbone(), str(tmp_path / "none.safetensors"))
    broken = dict(learned(trained))
    name, tensor = broken.popitem()
    save_file(broken, plain)
    with pytest.raises(InputError, match=f"{name} is missing there"):
        load_backbone(backbone(), str(plain))
    save_file(broken | {name: torch.full_like(tensor, float("nan"))}, plain)
    with pytest.raises(InputError, match="not all finite numbers"):
        load_backbone(backbone(), str(plain))
    before = backbone().state_dict()
    plain.write_bytes(b"not tensors")
    network = backbone()
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_backbone(network, str(plain))
    assert equal(network.state_dict(), before)
