"""Checkpoints: what goes in comes out, whole, or is refused."""

import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch

from bilevel_apps.errors import InputError, RunError
from bilevel_apps.runs import checkpoint as module
from bilevel_apps.runs.checkpoint import FORMAT, Checkpoint, load_checkpoint, save_checkpoint

RECORD = {"step": 3, "best_accuracy": 0.25, "name": "é\n", "nested": {"a": [1, None, True]}}


def make(**tensors):
    return Checkpoint(tensors=tensors, record=RECORD)


def equal(a, b):
    return (
        a.record == b.record
        and a.tensors.keys() == b.tensors.keys()
        and all(
            a.tensors[k].dtype == b.tensors[k].dtype
            and a.tensors[k].shape == b.tensors[k].shape
            and a.tensors[k].equal(b.tensors[k])
            for k in a.tensors
        )
    )


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.safetensors"
    kept = make(w=torch.arange(3.0), n=torch.tensor(7))
    save_checkpoint(path, kept)
    return path, kept


DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (2, 3), (2, 3, 4, 5)], ids=str)
def test_round_trip(tmp_path, dtype, shape):
    path = tmp_path / "checkpoint.safetensors"
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 2, shape, generator=generator).to(dtype)
    saved = make(x=values)
    save_checkpoint(path, saved)
    assert equal(load_checkpoint(path), saved)


def test_layouts_views_and_shared_memory(tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    images = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    saved = make(
        last=images,
        view=images[:, 1],
        same=images[:, 1],
        parameter=torch.nn.Parameter(torch.ones(2)),
        nan=torch.tensor([float("nan"), float("inf"), -0.0]),
    )
    save_checkpoint(path, saved)
    loaded = load_checkpoint(path).tensors
    assert loaded.keys() == saved.tensors.keys()
    assert torch.equal(loaded["last"], images)
    assert torch.equal(loaded["view"], images[:, 1])
    assert torch.equal(loaded["same"], images[:, 1])
    assert not loaded["parameter"].requires_grad
    assert loaded["nan"].view(torch.int32).equal(saved.tensors["nan"].view(torch.int32))


def test_same_contents_same_bytes(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    first, second = torch.ones(2), torch.zeros(3)
    save_checkpoint(a, Checkpoint(tensors={"x": first, "y": second}, record={"p": 1, "q": 2}))
    for _ in range(8):
        save_checkpoint(b, Checkpoint(tensors={"y": second, "x": first}, record={"q": 2, "p": 1}))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_every_flipped_byte_is_noticed_or_harmless(small, mask):
    path, kept = small
    content = path.read_bytes()
    noticed = 0
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= mask
        path.write_bytes(damaged)
        try:
            loaded = load_checkpoint(path)
        except InputError:
            noticed += 1
        else:
            assert equal(loaded, kept), f"byte {index} of {len(content)}"
    assert noticed > 0.9 * len(content)


def test_every_bit_of_the_tensors_counts(small):
    path, _ = small
    content = path.read_bytes()
    for bit in range(8 * 20):  # three float32 and one int64 at the end of the file
        damaged = bytearray(content)
        damaged[-1 - bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="SHA-256"):
            load_checkpoint(path)


def test_truncated_anywhere(small):
    path, _ = small
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InputError):
            load_checkpoint(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(InputError):
        load_checkpoint(path)


def test_a_tensor_under_another_name_is_noticed(tmp_path, small):
    path, kept = small
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    swapped = {"w": kept.tensors["w"], "m": kept.tensors["n"]}
    path.write_bytes(safetensors.torch.save(swapped, metadata))
    with pytest.raises(InputError, match="SHA-256"):
        load_checkpoint(path)


def test_not_ours(tmp_path):
    path = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"w": torch.ones(2)}, path)
    with pytest.raises(InputError, match=f"expected format {FORMAT}, found none"):
        load_checkpoint(path)
    for text in ('{"format": "pt"}', "pt", "[]", "{", ""):
        safetensors.torch.save_file({"w": torch.ones(2)}, path, {"bilevel": text})
        with pytest.raises(InputError, match=f"expected format {FORMAT}, found (pt|none)"):
            load_checkpoint(path)


@pytest.mark.parametrize("record", ["{", "[" * 100_000, "9" * 5000], ids=["cut", "deep", "long"])
def test_a_record_that_is_not_json(tmp_path, record):
    """With a digest that is right, as whoever makes a file can make it."""
    path, tensors = tmp_path / "other.safetensors", {"w": torch.ones(2)}
    header = {"format": FORMAT, "record": record, "sha256": module.tensors_sha256(tensors, record)}
    safetensors.torch.save_file(tensors, path, {"bilevel": json.dumps(header)})
    with pytest.raises(InputError, match="its record is not JSON: restore a copy"):
        load_checkpoint(path)


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("writer", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_a_pickle_is_never_opened(tmp_path, writer):
    path, sprung = tmp_path / "last.safetensors", tmp_path / "sprung"
    with path.open("wb") as file:
        writer(Trap(sprung), file)
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(path)
    assert not sprung.exists()


def test_missing_empty_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "missing")
    (tmp_path / "empty").touch()
    with pytest.raises(InputError, match="damaged or not a checkpoint"):
        load_checkpoint(tmp_path / "empty")
    with pytest.raises(InputError, match="not a plain file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["write_bytes", "commit"])
def test_a_failed_write_leaves_the_old_one(small, monkeypatch, moment):
    path, kept = small
    before = path.read_bytes()

    def fail_half_way(scratch, content):
        with scratch.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    def fail(*_):
        raise OSError(28, "No space left on device")

    if moment == "commit":
        monkeypatch.setattr(module, "commit", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", fail_half_way)
    with pytest.raises(RunError, match=r"cannot write the checkpoint .*No space left"):
        save_checkpoint(path, make(w=torch.zeros(5)))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert equal(load_checkpoint(path), kept)
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_one(small, monkeypatch):
    path, kept = small

    def interrupt(scratch, content):
        scratch.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, make(w=torch.zeros(5)))
    monkeypatch.undo()
    assert equal(load_checkpoint(path), kept)
    assert list(path.parent.iterdir()) == [path]


def test_bytes_are_on_the_disk_before_the_name(small, monkeypatch):
    """The new file is complete under another name when it is published."""
    path, _ = small
    seen = []

    def look(scratch, target):
        seen.append((load_checkpoint(scratch), scratch.parent == target.parent, scratch != target))

    monkeypatch.setattr(module, "commit", look)
    saved = make(w=torch.zeros(5))
    save_checkpoint(path, saved)
    ((loaded, beside, other),) = seen
    assert equal(loaded, saved)
    assert beside
    assert other
