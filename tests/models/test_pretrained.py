"""Weights that come with the package: what create_model makes of them, and what it refuses."""

import dataclasses
import hashlib
import json
import shutil
import time

import pytest
import safetensors.torch
import torch

from bilevel_models import (
    Card,
    Encoder,
    Normalization,
    create_model,
    list_pretrained,
    pretrained_card,
    pretrained_head,
    pretrained_weights,
)
from bilevel_models.pretrained import weights as pretrained
from bilevel_models.pretrained.card import parse_card
from bilevel_models.pretrained.weights import LARGEST, WEIGHTS

OPTIONS = {"channels": 1, "image_size": 16, "filters": 4}


def weights(**options):
    torch.manual_seed(5)
    return create_model("c4l", **(OPTIONS | options)).state_dict()


def card_of(tag, content, **changes):
    fields = {
        "tag": tag,
        "model": "c4l",
        "options": OPTIONS,
        "image_shape": (16, 16, 1),
        "preprocessing": "16×16",
        "data": {
            "name": "tiny",
            "source": "made by a test",
            "licence": "CC0",
            "splits": {"train": "0" * 64, "test": "1" * 64},
        },
        "normalization": "ghost",
        "unit_length": True,
        "steps": 5,
        "step_size": 0.1,
        "scale": 10.0,
        "head": None,
        "accuracy": (
            {
                "split": "test",
                "way": 5,
                "shot": 1,
                "query": 15,
                "episodes": 600,
                "seed": 0,
                "accuracy": 0.5,
                "ci95": 0.01,
            },
        ),
        "training": {
            "seed": 0,
            "step": 10,
            "command": "bilevel-train",
            "config": {},
            "environment": {},
        },
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    return Card(**(fields | changes))


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty place for weights, with `put(tag)` to fill it."""
    folder = tmp_path / "weights"
    monkeypatch.setattr(pretrained, "WEIGHTS", folder)

    def put(tag, content=None, **changes):
        folder.mkdir(exist_ok=True)
        content = safetensors.torch.save(weights()) if content is None else content
        (folder / f"{tag}.safetensors").write_bytes(content)
        (folder / f"{tag}.json").write_text(card_of(tag, content, **changes).to_json(), "utf-8")
        return folder

    return put


def refusal(function, *arguments, **options):
    """Return the message, which is one line, as every refusal's must be."""
    with pytest.raises(ValueError, match=r".") as raised:
        function(*arguments, **options)
    (line,) = str(raised.value).splitlines()
    return line


def test_a_model_has_the_weights_and_the_options_of_its_card(shelf):
    shelf("tiny")
    model = create_model("c4l", pretrained="tiny")
    expected = weights()
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    images = torch.rand(3, 1, 16, 16)
    again = create_model("c4l", pretrained="tiny", **OPTIONS)
    torch.testing.assert_close(model(images), again(images), rtol=0, atol=0)
    fresh = create_model("c4l", **OPTIONS)
    assert not torch.equal(model(images), fresh(images))


def test_a_card_reads_back_as_it_was_written(shelf):
    shelf("b-2")
    shelf("a-1", steps=0, unit_length=False, data={**card_of("a", b"").data, "source": "été"})
    first, second = list_pretrained()
    assert (first.tag, second.tag) == ("a-1", "b-2")
    assert first.data["source"] == "été"
    for card in (first, second):
        assert card == pretrained_card(card.tag)
        assert parse_card(card.to_json(), "again") == card
    assert pretrained_weights(second).keys() == weights().keys()


def test_a_card_brings_what_fits_heads(shelf):
    mean = torch.linspace(-1, 1, 4)
    content = safetensors.torch.save(weights() | {"head.running_mean": mean})
    numbers = {"shrinkage": 0.5, "temperature": 30.0, "decay": 0.01}
    shelf("tiny", content, head=numbers)
    solver = pretrained_head(pretrained_card("tiny"))
    assert torch.equal(solver.running_mean, mean)
    for name, value in numbers.items():
        assert float(getattr(solver, f"log_{name}").detach().exp()) == pytest.approx(
            value, rel=1e-6
        )
    create_model("c4l", pretrained="tiny")  # the backbone has no part of it


def test_weights_without_such_numbers_say_so(shelf):
    shelf("tiny")
    assert "heads.descend" in refusal(pretrained_head, pretrained_card("tiny"))


def test_weights_are_there_in_milliseconds(shelf):
    content = safetensors.torch.save(create_model("omniglot-net").state_dict())
    shelf("tiny", content, model="omniglot-net", options={"channels": 1, "image_size": 28})

    def seconds():
        start = time.perf_counter()
        create_model("omniglot-net", pretrained="tiny")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.1


def test_other_models_options_and_tags_are_refused(shelf):
    assert refusal(create_model, "c4l", pretrained="tiny") == (
        "no pretrained weights 'tiny': choose one of none in this installation"
    )
    assert list_pretrained() == ()
    shelf("tiny")
    assert "'huge': choose one of tiny" in refusal(create_model, "c4l", pretrained="huge")
    assert "'../tiny': choose one of tiny" in refusal(create_model, "c4l", pretrained="../tiny")
    line = refusal(create_model, "rn", pretrained="tiny")
    assert line == "pretrained 'tiny' is a 'c4l', not a 'rn': name that model"
    line = refusal(create_model, "c4l", pretrained="tiny", channels=3)
    assert "has channels=1, image_size=16, filters=4, not channels=3: leave that" in line
    assert "not depth=4: leave" in refusal(create_model, "c4l", pretrained="tiny", depth=4)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(change):
    def apply(path):
        record = json.loads(path.read_text("utf-8"))
        change(record)
        path.write_text(json.dumps(record), "utf-8")

    return apply


def score(**changes):
    return edit(lambda record: record["accuracy"][0].update(changes))


DAMAGE = {
    "a flipped bit": ("safetensors", flip, "tiny.safetensors: damaged: not the SHA-256 of its ca"),
    "half a file": (
        "safetensors",
        lambda p: p.write_bytes(p.read_bytes()[:400]),
        "tiny.safetensors: damaged",
    ),
    "no weights": ("safetensors", lambda p: p.unlink(), "cannot be read (No such file or dir"),
    "text": ("json", lambda p: p.write_text("weights"), "tiny.json: not JSON"),
    "no text": ("json", lambda p: p.write_bytes(b"\xff\xfe\xff"), "tiny.json: not JSON"),
    "nesting": ("json", lambda p: p.write_text("[" * 10**6), "tiny.json: not JSON"),
    "a list": ("json", lambda p: p.write_text("[]"), "not a card of this version"),
    "a folder": ("json", lambda p: p.unlink() or p.mkdir(), "tiny.json: cannot be read ("),
    "a later format": ("json", edit(lambda r: r.update(format="9")), "not a card of this version"),
    "a key gone": ("json", edit(lambda r: r.pop("scale")), "missing or unknown (scale): reinst"),
    "a key too many": ("json", edit(lambda r: r.update(more=1)), "missing or unknown (more)"),
    "another's": ("json", edit(lambda r: r.update(tag="other")), "tiny.json: its tag is 'other'"),
    "a tag that leads away": ("json", edit(lambda r: r.update(tag="../x")), "tag: expected lower"),
    "a name that steers": ("json", edit(lambda r: r.update(model="\x1b[2J")), "model: expected a"),
    "a word for T": (
        "json",
        edit(lambda r: r.update(steps="5")),
        "steps: expected null or a whole number",
    ),
    "a negative T": (
        "json",
        edit(lambda r: r.update(steps=-1)),
        "steps: expected null or a whole number",
    ),
    "a switch for T": ("json", edit(lambda r: r.update(steps=True)), "steps: expected null or"),
    "no step size": ("json", edit(lambda r: r.update(step_size=0.0)), "step_size: expected a pos"),
    "infinite": ("json", edit(lambda r: r.update(scale=float("inf"))), "scale: expected a positi"),
    "no shape": ("json", edit(lambda r: r.update(image_shape=[16, 16])), "image_shape: expected"),
    "no options": ("json", edit(lambda r: r.update(options={"channels": 1.5})), "options: expect"),
    "no switch": ("json", edit(lambda r: r.update(unit_length=1)), "unit_length: expected true"),
    "no scores": ("json", edit(lambda r: r.update(accuracy=[])), "accuracy: expected one or more"),
    "a score of 98": ("json", score(accuracy=98.0), "accuracy: expected one or more"),
    "a score without way": ("json", score(way=0), "accuracy: expected one or more"),
    "no data": ("json", edit(lambda r: r.update(data=None)), "data: expected"),
    "no licence": ("json", edit(lambda r: r["data"].pop("licence")), "data: expected"),
    "no hash": ("json", edit(lambda r: r["data"]["splits"].update(test="")), "data: expected"),
    "no command": ("json", edit(lambda r: r["training"].pop("command")), "training: expected"),
    "no config": ("json", edit(lambda r: r["training"].update(config=1)), "training: expected"),
    "no digest": ("json", edit(lambda r: r.update(sha256="0" * 63)), "sha256: expected 64"),
}


@pytest.mark.parametrize("case", DAMAGE, ids=lambda case: case.replace(" ", "-"))
def test_damage_costs_one_line(shelf, case):
    suffix, spoil, says = DAMAGE[case]
    folder = shelf("tiny")
    spoil(folder / f"tiny.{suffix}")
    assert says in refusal(create_model, "c4l", pretrained="tiny")
    if suffix == "json":
        assert says in refusal(list_pretrained)


def test_weights_that_do_not_fit_their_card(shelf):
    shelf("tiny", safetensors.torch.save(weights(filters=5)))
    line = refusal(create_model, "c4l", pretrained="tiny")
    assert line.startswith("tiny.safetensors: not the weights of the model on its card")
    shelf("tiny", b"a pickle, perhaps")
    assert "not a safetensors file" in refusal(create_model, "c4l", pretrained="tiny")


def test_a_card_cannot_be_made_of_nonsense():
    card = card_of("tiny", b"")
    with pytest.raises(ValueError, match=r"scale: expected a positive number, found -1\.0"):
        dataclasses.replace(card, scale=-1.0)


def test_weights_are_shipped():
    assert list_pretrained()


def test_every_shipped_card_keeps_its_promises():
    for card in list_pretrained():
        content = (WEIGHTS / f"{card.tag}.safetensors").read_bytes()
        assert len(content) <= LARGEST
        height, width, channels = card.image_shape
        backbone = create_model(card.model, pretrained=card.tag, channels=channels)
        assert all(bool(tensor.isfinite().all()) for tensor in backbone.state_dict().values())
        encoder = Encoder(
            backbone=backbone,
            normalization=Normalization(card.normalization),
            unit_length=card.unit_length,
        )
        images = torch.rand(2, 3, channels, height, width)
        with torch.no_grad():
            _, h = encoder(images, images, training=False)
        assert h.shape == (2, 3, backbone.dim)
        if card.unit_length:
            torch.testing.assert_close(h.norm(dim=-1), torch.ones(2, 3))
        assert any(score["split"] in ("val", "test") for score in card.accuracy)
        assert all(score["episodes"] >= 600 for score in card.accuracy)
        assert card.data["splits"].keys() >= {"train", "val"}
        assert card.training["command"].startswith("bilevel-train --preset ")
        assert card.training["config"]["data"] is None


def test_nothing_else_lies_with_the_weights():
    code = ("py", "__pycache__")
    names = {e.name for e in WEIGHTS.iterdir() if e.name.rpartition(".")[2] not in code}
    tags = [card.tag for card in list_pretrained()]
    assert names == {f"{tag}.{suffix}" for tag in tags for suffix in ("json", "safetensors")}


def test_a_leftover_of_a_kill_is_no_card(shelf):
    folder = shelf("tiny")
    shutil.copy(folder / "tiny.json", folder / ".tiny.json.0123.tmp")
    assert [card.tag for card in list_pretrained()] == ["tiny"]
