"""Files that somebody might send, and the commands that are given them."""

import io
import json
import os
import pickle
import sqlite3
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from PIL import Image

from bilevel_apps.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bilevel_data.files.atomic import file_sha256
from bilevel_data.stores.hdf5.checksums import lookup3


@dataclass(frozen=True)
class Place:
    """Where a case puts its files.

    Attributes:
        folder: for the hostile ones.
        out: for what a command writes; nothing else may change.
        store: a good one, whose copies are spoilt.
        run: the folder of a good run, likewise.
        canary: made by a payload if it ever runs.
    """

    folder: Path
    out: Path
    store: Path
    run: Path
    canary: Path


@dataclass(frozen=True)
class Case:
    """One hostile file: its kind, its name, and how to make it.

    `make(place)` returns the arguments of a command. The error must name `named`, or the last
    argument that is a path below `place.folder`.
    """

    kind: str
    name: str
    make: Callable[[Place], list[str]]
    named: str = ""


CASES: list[Case] = []


def case(kind, name, named=""):
    def add(make):
        CASES.append(Case(kind, name, make, named))
        return make

    return add


# Stores, byte by byte.


def store_of(change):
    """`bilevel-data verify` of a store whose bytes were changed, with a sidecar that agrees."""

    def make(place):
        path = place.folder / "stranger.h5"
        path.write_bytes(change(bytearray(place.store.read_bytes())))
        sidecar(path)
        return ["data", "verify", str(path)]

    return make


def sidecar(path):
    path.with_name(f"{path.name}.sha256").write_text(f"{file_sha256(path)}  {path.name}\n")


def mended(content):
    """HDF5 metadata whose checksums were made right again, as a stranger would."""
    starts = [0, *positions(content, b"OHDR"), *positions(content, b"FAHD")]
    original = bytes(content)
    for start in starts:
        for end in range(start + 8, min(len(content) - 3, start + 700)):
            if lookup3(ORIGINAL[start:end]) == int.from_bytes(ORIGINAL[end : end + 4], "little"):
                content[end : end + 4] = lookup3(original[start:end]).to_bytes(4, "little")
                break
    return content


ORIGINAL = b""


def positions(content, signature):
    at = content.find(signature)
    while at >= 0:
        yield at
        at = content.find(signature, at + 1)


def crafted(change):
    """A store of which one number in the metadata is another, and all checksums are right."""

    def make(content):
        global ORIGINAL
        ORIGINAL = bytes(content)
        change(content)
        return mended(content)

    return make


LAYOUT = bytes((5, 2, 2, 2, 1))  # version, chunked, one filtered chunk, two axes, a byte each


def no_chunk(content):
    """A chunk of zero numbers, by which HDF5's library divides."""
    at = content.find(LAYOUT)
    content[at + 5] = 0


def far_root(content):
    content[36:44] = (1 << 63).to_bytes(8, "little")


def far_chunk(content):
    at = content.find(LAYOUT)
    content[at + 20 : at + 28] = (1 << 62).to_bytes(8, "little")


def own_parent(content):
    """A group that holds itself."""
    at = content.find(b"train")
    content[at + 5 : at + 13] = content[36:44]


for _name, _change in {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "more after it": lambda content: content + bytes(1000),
    "wrong magic": lambda content: b"\x89PNG" + content[4:],
    "magic alone": lambda content: content[:8],
    "text": lambda content: b"hello, this is no store at all",
}.items():
    case("store bytes", _name)(store_of(_change))
for _change in (no_chunk, far_root, far_chunk, own_parent):
    case("store metadata", _change.__name__)(store_of(crafted(_change)))


@case("store bytes", "a terabyte of nothing")
def sparse_store(place):
    path = place.folder / "stranger.h5"
    path.write_bytes(place.store.read_bytes())
    os.truncate(path, 1 << 40)
    return ["data", "info", str(path)]


@case("store bytes", "lying checksum")
def lying_sidecar(place):
    path = place.folder / "stranger.h5"
    path.write_bytes(place.store.read_bytes())
    path.with_name("stranger.h5.sha256").write_text(f"{'0' * 64}  stranger.h5\n")
    return ["data", "verify", str(path)]


# Stores, made with HDF5's library.


def edited(change, command="verify"):
    def make(place):
        path = place.folder / "stranger.h5"
        path.write_bytes(place.store.read_bytes())
        with h5py.File(path, "r+", libver="latest") as file:
            array = file["train/images"][()]
            change(file, array)
        sidecar(path)
        if command == "train":
            return [
                "train",
                "--preset",
                "glyphs-5way-1shot",
                "--data",
                str(path),
                "--out",
                str(place.out / "run"),
            ]
        return ["data", command, str(path)]

    return make


def images(**options):
    def change(file, array):
        convert = options.get("convert", lambda a: a)
        changed = np.ascontiguousarray(convert(array))
        del file["train/images"]
        given = {k: v for k, v in options.items() if k != "convert"}
        file.create_dataset(
            "train/images", data=changed, **({"chunks": changed.shape, "fletcher32": True} | given)
        )

    return change


def declared(shape, chunks):
    def change(file, _array):
        del file["train/images"]
        file.create_dataset("train/images", shape, "u1", chunks=chunks, fletcher32=True)

    return change


def linked(make):
    def change(file, array):
        del file["train/images"]
        make(file, array)

    return change


def external_storage(file, array):
    where = [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    file.create_dataset("train/images", array.shape, "u1", external=where)


def virtual(file, array):
    layout = h5py.VirtualLayout(array.shape, "u1")
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", array.shape)
    file.create_virtual_dataset("train/images", layout)


def soft_link(file, array):
    file["train/images"] = h5py.SoftLink("/train/class_offsets")


def external_link(file, array):
    file["train/images"] = h5py.ExternalLink("/etc/hostname", "/x")


def unknown_filter(file, array):
    plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plan.set_chunk(array.shape)
    plan.set_filter(40_000, h5py.h5z.FLAG_OPTIONAL, (1,))
    space = h5py.h5s.create_simple(array.shape)
    h5py.h5d.create(file["train"].id, b"images", h5py.h5t.NATIVE_UINT8, space, plan)


def manifest(change):
    def edit(file, _array):
        record = json.loads(file["manifest"][:].tobytes())
        text = change(record)
        data = np.frombuffer((text or json.dumps(record)).encode(), dtype=np.uint8)
        del file["manifest"]
        file.create_dataset("manifest", data=data, chunks=data.shape, fletcher32=True)

    return edit


def class_twice(record):
    record["splits"]["test"]["class_names"][0] = record["splits"]["train"]["class_names"][0]


def escape(record):
    record["name"] = "\x1b]0;owned\x07"


STORES = {
    ("store claims", "huge shape"): declared((1 << 40, 16, 16, 1), (1, 16, 16, 1)),
    ("store claims", "huge chunk"): declared((1 << 31, 16, 16, 1), (1 << 22, 16, 16, 1)),
    ("store claims", "never written"): declared((240, 16, 16, 1), (240, 16, 16, 1)),
    ("store type", "NaN"): images(convert=lambda a: np.full(a.shape, np.nan, "f4")),
    ("store type", "signed"): images(convert=lambda a: a.astype("i1")),
    ("store type", "compound"): images(convert=lambda a: a.astype([("a", "u1")])),
    ("store type", "text"): linked(
        lambda f, a: f.create_dataset("train/images", data=["a"], dtype=h5py.string_dtype())
    ),
    ("store rank", "flat"): images(convert=np.ravel),
    ("store rank", "scalar"): linked(
        lambda f, a: f.create_dataset("train/images", data=np.uint8())
    ),
    ("store filters", "unknown"): linked(unknown_filter),
    ("store filters", "gzip bomb"): images(
        convert=lambda a: np.zeros((1 << 16, 16, 16, 1), "u1"), compression="gzip"
    ),
    ("store links", "soft"): linked(soft_link),
    ("store links", "external"): linked(external_link),
    ("store links", "external storage"): linked(external_storage),
    ("store links", "virtual"): linked(virtual),
    ("store manifest", "class in two splits"): manifest(class_twice),
    ("store manifest", "not JSON"): manifest(lambda _: "{"),
    ("store manifest", "deep"): manifest(lambda _: "[" * 100_000),
    ("store manifest", "NaN"): manifest(lambda m: m["splits"]["train"].update(images=float("nan"))),
    ("store manifest", "a huge number"): manifest(lambda _: "9" * 100_000),
    ("store manifest", "terminal codes"): manifest(escape),
}
for (_kind, _name), _change in STORES.items():
    case(_kind, _name)(edited(_change))
case("store links", "external, in a training")(edited(linked(external_link), "train"))
case("store claims", "huge, in a training")(
    edited(declared((1 << 40, 9, 9, 1), (1, 9, 9, 1)), "train")
)


# Files that are no files.


def special(make, *command):
    def prepare(place):
        path = place.folder / "stranger"
        make(path)
        return [
            *command,
            *([str(path)]),
            *(["--out", str(place.out / "run")] * ("train" in command)),
        ]

    return prepare


def endless(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path)


for _name, _make in {
    "pipe": os.mkfifo,
    "device": endless,
    "loop": loop,
    "folder": Path.mkdir,
}.items():
    case("not a file", f"store, {_name}")(special(_make, "data", "verify"))
    case("not a file", f"settings, {_name}")(special(_make, "train"))
    case("not a file", f"run, {_name}")(special(_make, "eval"))
    if _name != "folder":
        case("not a file", f"zip, {_name}")(
            special(_make, "data", "prepare", "mini-imagenet", "--out", "m.h5", "--source")
        )


@case("not a file", "checkpoint, pipe")
def pipe_checkpoint(place):
    path = spoilt_run(place) / "best.safetensors"
    path.unlink()
    os.mkfifo(path)
    return ["eval", str(path.parent)]


@case("not a file", "checksum, pipe")
def pipe_sidecar(place):
    path = place.folder / "stranger.h5"
    path.write_bytes(place.store.read_bytes())
    os.mkfifo(path.with_name("stranger.h5.sha256"))
    return ["data", "verify", str(path)]


@case("not a file", "splits, pipe", named="splits.json")
def pipe_splits(place):
    path = place.folder / "splits.json"
    os.mkfifo(path)
    return prepare_torchvision(place, path)


@case("splits", "deep", named="splits.json")
def deep_splits(place):
    path = place.folder / "splits.json"
    path.write_text("[" * 100_000)
    return prepare_torchvision(place, path)


def prepare_torchvision(place, splits):
    folder = good_pictures(place.folder / "pictures")
    source = ["torchvision:ImageFolder", "--source", str(folder)]
    out = str(place.out / "t.h5")
    return ["data", "prepare", *source, "--out", out, "--option", f"splits={splits}"]


# Checkpoints.


def spoilt_run(place):
    folder = place.folder / "run"
    folder.mkdir()
    for file in place.run.iterdir():
        if file.is_file():
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


def checkpoint_of(change):
    """`bilevel-eval` of a run whose best checkpoint has other bytes."""

    def make(place):
        path = spoilt_run(place) / "best.safetensors"
        path.write_bytes(change(path.read_bytes()))
        return ["eval", str(path.parent)]

    return make


def record_of(change):
    """`bilevel-eval` of a run whose checkpoint holds something else, with a right digest."""

    def make(place):
        path = spoilt_run(place) / "best.safetensors"
        found = load_checkpoint(path)
        record, tensors = json.loads(json.dumps(found.record)), dict(found.tensors)
        changed = change(record, tensors)
        save_checkpoint(
            path, Checkpoint(tensors=tensors, record=record if changed is None else changed)
        )
        return ["eval", str(path.parent)]

    return make


def header(length, text=b"{}"):
    return length.to_bytes(8, "little") + text


def spread(key, value):
    return lambda record, _: record["config"]["model"].update({key: value})


class Payload:
    """Leaves the canary behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


for _name, _change in {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "huge header": lambda content: header(1 << 62),
    "header of 100 MB": lambda content: header(100 << 20, b"{" * 1000),
    "deep header": lambda content: header(200_000, b"[" * 200_000),
    "huge tensor": lambda content: header(
        72, b'{"w":{"dtype":"F64","shape":[4611686018427387904,4],"data_offsets":[0,8]}}'.ljust(72)
    ),
    "somebody else's": lambda content: safetensors_of({"w": torch.ones(2)}),
}.items():
    case("checkpoint bytes", _name)(checkpoint_of(_change))


def safetensors_of(tensors):
    import safetensors.torch

    return safetensors.torch.save(tensors)


@case("checkpoint bytes", "a terabyte of nothing")
def sparse_checkpoint(place):
    path = spoilt_run(place) / "best.safetensors"
    os.truncate(path, 1 << 40)
    return ["eval", str(path.parent)]


for _name, _change in {
    "no object": lambda *_: [1, 2],
    "huge layer": spread("filters", 10**6),
    "huge outputs": spread("outputs", 10**12),
    "another model": spread("name", "resnet12"),
    "unknown model": spread("name", "../../model"),
    "huge picture": lambda record, _: record.update(image_shape=[10**9, 10**9, 3]),
    "huge step": lambda record, _: record.update(step=float("nan")),
    "unknown key": lambda record, _: record["config"].update(run="rm -rf"),
    "NaN weights": lambda _, tensors: tensors.update(
        {k: torch.full_like(t, torch.nan) for k, t in tensors.items() if t.is_floating_point()}
    ),
    "no weights": lambda _, tensors: tensors.clear(),
}.items():
    case("checkpoint record", _name)(record_of(_change))


@case("checkpoint record", "chosen steps, deep")
def deep_choice(place):
    folder = spoilt_run(place)
    (folder / "chosen.json").write_text("[" * 100_000)
    return ["eval", str(folder)]


def pickled(path, canary):
    path.write_bytes(pickle.dumps(Payload(canary)))


def torch_saved(path, canary):
    torch.save({"model": Payload(canary)}, path)


for _write in (pickled, torch_saved):

    @case("payload", f"checkpoint, {_write.__name__}")
    def payload_checkpoint(place, write=_write):
        path = spoilt_run(place) / "best.safetensors"
        write(path, place.canary)
        return ["eval", str(path.parent)]

    @case("payload", f"lone checkpoint, {_write.__name__}")
    def payload_alone(place, write=_write):
        path = place.folder / "model.pt"
        write(path, place.canary)
        return ["predict", str(path), *pictures_to_predict(place)]

    @case("payload", f"store, {_write.__name__}")
    def payload_store(place, write=_write):
        path = place.folder / "glyphs.h5"
        write(path, place.canary)
        return [
            "train",
            "--preset",
            "glyphs-5way-1shot",
            "--data",
            str(path),
            "--out",
            str(place.out / "run"),
        ]


@case("payload", "CIFAR10's own pickles", named="CIFAR10")
def payload_torchvision(place):
    folder = place.folder / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch", "batches.meta"]:
        pickled(folder / name, place.canary)
    return [
        "data",
        "prepare",
        "torchvision:CIFAR10",
        "--source",
        str(place.folder),
        "--out",
        str(place.out / "c.h5"),
    ]


# Settings.


def bomb(kind):
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]" if kind == "list" else "a0: &a0 {k0: 1}"]
    for k in range(1, 30):
        if kind == "list":
            lines.append(f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]")
        else:
            lines.append(f"a{k}: &a{k} {{<<: [{', '.join([f'*a{k - 1}'] * 9)}], k{k}: 1}}")
    return "\n".join(lines)


SETTINGS = {
    "alias bomb": bomb("list"),
    "merge bomb": bomb("merge"),
    "alias of itself": "train: &t {more: *t}",
    "tag": "seed: !!python/object/apply:os.mkdir [{canary}]",
    "tag of a name": "seed: !!python/name:os.system",
    "tab": "train:\n\tsteps: 1",
    "unknown key": "train: {stepz: 1}",
    "key twice": "seed: 1\nseed: 2",
    "deep": "[" * 30_000,
    "long": "seed: 1\n" + "# \n" * 30_000,
    "long number": f"seed: {'9' * 20_000}",
    "long hexadecimal": f"seed: 0x{'f' * 20_000}",
    "base 60": f"seed: {'59:' * 10_000}59",
    "infinite": "train: {lr: .inf}",
    "NaN": "inner: {lr: .nan}",
    "list": "[1, 2]",
    "terminal codes": 'seed: "\\e]0;owned\\a"',
    "date": "seed: 2001-99-99",
    "no text": b"\xff\xfe\x00\xd8",
    "zero bytes": b"seed: 1\x00",
    "a store": "data: /etc/hostname\ntrain: {steps: yes}",
}


def settings(text):
    def make(place):
        path = place.folder / "stranger.yaml"
        if isinstance(text, str):
            path.write_text(text.replace("{canary}", str(place.canary)))
        else:
            path.write_bytes(text)
        return ["train", str(path), "--out", str(place.out / "run")]

    return make


for _name, _text in SETTINGS.items():
    case("settings", _name)(settings(_text))


# Archives.

LIST = "filename,label\n" + "".join(f"n{k}.png,n{k}\n" for k in range(4))


def picture_bytes(size=(8, 8), mode="RGB", form="PNG", **options):
    file = io.BytesIO()
    Image.new(mode, size).save(file, form, **options)
    return file.getvalue()


def zipped(members, method=zipfile.ZIP_DEFLATED, change=None):
    """`prepare mini-imagenet` of a zip with a good list and pictures, and these members too."""

    def make(place):
        path = place.folder / "stranger.zip"
        with zipfile.ZipFile(path, "w", method) as archive:
            archive.writestr("train.csv", LIST)
            for k in range(4):
                archive.writestr(f"images/n{k}.png", picture_bytes())
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a name that is there already
                for name, content in members(place):
                    archive.writestr(name, content)
        if change is not None:
            path.write_bytes(change(path.read_bytes()))
        return mini_imagenet(place, path)

    return make


def mini_imagenet(place, path):
    return [
        "data",
        "prepare",
        "mini-imagenet",
        "--source",
        str(path),
        "--out",
        str(place.out / "m.h5"),
    ]


def entry(name, mode):
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def encrypted(content):
    """Set the bit that says so, of each member."""
    content = bytearray(content)
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        for at in list(positions(content, signature)):
            content[at + offset] |= 1
    return content


for _name, _make in {
    "..": zipped(lambda place: [("../../escaped.png", b"x")]),
    "absolute": zipped(lambda place: [(f"{place.canary}", b"x")]),
    "backslashes": zipped(lambda place: [("..\\..\\escaped.png", b"x")]),
    "drive": zipped(lambda place: [("C:\\escaped.png", b"x")]),
    "link": zipped(lambda place: [(entry("images/n5.png", 0o120777), b"/etc/passwd")]),
    "device": zipped(lambda place: [(entry("images/n5.png", 0o020666), b"")]),
    "bomb": zipped(lambda place: [("val.csv", bytes(200 << 20))]),
    "one name twice": zipped(lambda place: [("images//n1.png", b"x"), ("images//n1.png", b"x")]),
    "encrypted": zipped(lambda place: [], change=encrypted),
    "lzma": zipped(lambda place: [], zipfile.ZIP_LZMA),
    "truncated": zipped(lambda place: [], change=lambda c: c[:-30]),
    "no zip": zipped(lambda place: [], change=lambda c: b"PK\3\4" + bytes(100)),
    "name that is not UTF-8": zipped(
        lambda place: [("imagesé.png", b"x")], change=lambda c: c.replace("é".encode(), b"\xff\xfe")
    ),
    "damaged list": zipped(lambda place: [], change=lambda c: c.replace(b"PK\1\2", b"PK\1\3", 1)),
}.items():
    case("zip", _name)(_make)


def mini_imagenet_cmyk(place):
    """A photograph for print, which the list names."""
    return [("val.csv", "filename,label\nn4.jpg,n4\n"), ("images/n4.jpg", PICTURES["cmyk.jpg"]())]


case("picture", "mini-imagenet's zip, cmyk.jpg", named="images/n4.jpg")(zipped(mini_imagenet_cmyk))


@case("picture", "mini-imagenet's folder, cmyk.jpg", named="images/n4.jpg")
def cmyk_in_a_folder(place):
    zipped(mini_imagenet_cmyk)(place)
    with zipfile.ZipFile(place.folder / "stranger.zip") as archive:
        archive.extractall(place.folder / "mini")
    return mini_imagenet(place, place.folder / "mini")


@case("zip", "a million members")
def million(place):
    """The end of a zip alone, whose list was written without its members."""
    entries = b"".join(
        struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0)
        + b"%08d" % k
        for k in range(1_000_000)
    )
    big = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1_000_000, 1_000_000, len(entries), 0
    )
    where = struct.pack("<4sLQL", b"PK\6\7", 0, len(entries), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    path = place.folder / "stranger.zip"
    path.write_bytes(entries + big + where + end)
    return mini_imagenet(place, path)


@case("zip", "one list for all members")
def overlapping(place):
    """A thousand names for one packed list of 8 MB: some kilobytes that say they are 8 GB."""
    path = place.folder / "stranger.zip"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    raw = bytes(8 << 20)
    packed = packer.compress(raw) + packer.flush()
    crc, name = zlib.crc32(raw), b"train.csv"
    local = struct.pack(
        "<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 33, crc, len(packed), len(raw), len(name), 0
    )
    entries = b"".join(
        struct.pack(
            "<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 33, crc, len(packed), len(raw), 9,
            0, 0, 0, 0, 0, 0,
        ) + b"train.csv"
        for _ in range(1000)
    )  # fmt: skip
    body = local + name + packed
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1000, 1000, len(entries), len(body), 0)
    path.write_bytes(body + entries + end)
    return mini_imagenet(place, path)


def tarred(mode, members, command="mini-imagenet"):
    def make(place):
        path = place.folder / (
            "stranger.tar" if command == "mini-imagenet" else "images_background.zip"
        )
        with tarfile.open(path, mode) as archive:
            for info, content in members(place):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        source = path if command == "mini-imagenet" else path.parent
        return [
            "data",
            "prepare",
            command,
            "--source",
            str(source),
            "--out",
            str(place.out / "m.h5"),
        ]

    return make


def tar_entry(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


for _name, _members in {
    "..": lambda place: [(tar_entry("../../escaped.png"), b"x")],
    "absolute": lambda place: [(tar_entry(str(place.canary)), b"x")],
    "symbolic link": lambda place: [(tar_entry("train.csv", tarfile.SYMTYPE, "/etc/passwd"), b"")],
    "hard link": lambda place: [(tar_entry("train.csv", tarfile.LNKTYPE, "/etc/passwd"), b"")],
    "device": lambda place: [(tar_entry("train.csv", tarfile.CHRTYPE), b"")],
    "many": lambda place: [(tar_entry(f"{k}"), b"") for k in range(10_000)],
}.items():
    case("tar", _name)(tarred("w", _members))
case("tar", "bomb")(tarred("w:gz", lambda place: [(tar_entry("train.csv"), bytes(100 << 20))]))
case("tar", "as omniglot's zip", named="images_background.zip")(
    tarred("w", lambda place: [(tar_entry("../x.png"), b"x")], "omniglot")
)


# Pictures.


def png(width, height, depth=8, colour=2, data=b"", chunks=()):
    def chunk(name, content):
        body = name + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [
        chunk(b"IHDR", head),
        *(chunk(*c) for c in chunks),
        chunk(b"IDAT", data),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def animated(form):
    frames = [Image.new("RGB", (8, 8), (40 * k, 0, 0)) for k in range(3)]
    file = io.BytesIO()
    frames[0].save(file, form, save_all=True, append_images=frames[1:], duration=100)
    return file.getvalue()


def many_scans():
    """A small file that asks for as many passes over all pixels as it likes."""
    whole = picture_bytes((2000, 2000), form="JPEG", progressive=True).removesuffix(b"\xff\xd9")
    start, *scans = whole.split(b"\xff\xda")
    return b"\xff\xda".join([start, *scans, *[scans[-1]] * 1000]) + b"\xff\xd9"


PICTURES = {
    "scans.jpg": many_scans,
    "bomb.png": lambda: png(50_000, 50_000, data=zlib.compress(bytes(1 << 20))),
    "bomb.bmp": lambda: (
        picture_bytes(form="BMP")[:18]
        + struct.pack("<ii", 60_000, 60_000)
        + picture_bytes(form="BMP")[26:]
    ),
    "bomb.gif": lambda: (
        b"GIF89a" + struct.pack("<HH", 65_535, 65_535) + picture_bytes(form="GIF")[10:]
    ),
    "text bomb.png": lambda: png(
        8,
        8,
        chunks=[(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20)))],
        data=zlib.compress(bytes(200)),
    ),
    "profile bomb.png": lambda: png(
        8, 8, chunks=[(b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20)))], data=b""
    ),
    "postscript.png": lambda: (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) run\n"
    ),
    "vector.png": lambda: (
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>'
    ),
    "page.png": lambda: b"%PDF-1.7\n",
    "pages.tiff": lambda: animated("TIFF"),
    "cmyk.jpg": lambda: picture_bytes(mode="CMYK", form="JPEG"),
    "sixteen.png": lambda: png(8, 8, 16, 2, zlib.compress(bytes(8 * (1 + 8 * 6)))),
    "animated.gif": lambda: animated("GIF"),
    "animated.png": lambda: animated("PNG"),
    "animated.webp": lambda: animated("WEBP"),
    "half.jpg": lambda: picture_bytes((64, 64), form="JPEG")[:-200],
    "half.png": lambda: os.urandom(0) + picture_bytes((64, 64))[:60],
    "empty.png": lambda: b"",
    "script.jpg": lambda: b"#!/bin/sh\ntouch canary\n",
}


def good_pictures(folder, classes=("a", "b", "c")):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for k in range(2):
            (folder / name / f"{k}.png").write_bytes(picture_bytes())
    return folder


def prepare_folder(place, folder):
    return [
        "data",
        "prepare",
        "folder",
        "--source",
        str(folder),
        "--option",
        "size=8",
        "--out",
        str(place.out / "f.h5"),
    ]


def pictures_to_predict(place):
    support = good_pictures(place.folder / "support")
    return ["--support", str(support), "--query", str(support / "a")]


def pictured(name, content, command):
    def make(place):
        if command == "prepare":
            folder = good_pictures(place.folder / "pictures")
            (folder / "a" / name).write_bytes(content())
            return prepare_folder(place, folder)
        support = good_pictures(place.folder / "support")
        (place.folder / name).write_bytes(content())
        return [
            "predict",
            str(place.run),
            "--support",
            str(support),
            "--query",
            str(place.folder / name),
        ]

    return make


for _name, _content in PICTURES.items():
    for _command in ("prepare", "predict"):
        case("picture", f"{_command}, {_name}", named=_name)(pictured(_name, _content, _command))


def among_pictures(make):
    def prepare(place):
        folder = good_pictures(place.folder / "pictures")
        make(folder)
        return prepare_folder(place, folder)

    return prepare


for _name, _make in {
    "device": lambda folder: (folder / "a" / "x.png").symlink_to("/dev/zero"),
    "pipe": lambda folder: os.mkfifo(folder / "a" / "x.png"),
    "loop": lambda folder: (folder / "a" / "x.png").symlink_to("x.png"),
    "a file of secrets": lambda folder: (folder / "a" / "x.png").symlink_to("/etc/passwd"),
}.items():
    case("picture", f"link, {_name}", named="x.png")(among_pictures(_make))


# Beside a run, and where runs are recorded.


def choice(make):
    def prepare(place):
        folder = spoilt_run(place)
        make(folder / "chosen.json")
        return ["eval", str(folder)]

    return prepare


def sweep(make):
    def prepare(place):
        folder = place.folder / "sweep"
        folder.mkdir()
        make(folder / "sweep.json")
        return ["train", "--resume", "--out", str(folder)]

    return prepare


def written(text):
    return lambda path: path.write_text(text)


for _name, _make in {
    "pipe": os.mkfifo,
    "device": endless,
    "deep": written("[" * 100_000),
    "empty": written(""),
    "another type": written('{"steps": "5", "lr": [], "checkpoint_sha256": 1}'),
    "not a number": written('{"steps": 5, "lr": NaN, "checkpoint_sha256": "a"}'),
}.items():
    case("beside a run", f"chosen.json, {_name}", named="chosen.json")(choice(_make))
    case("beside a run", f"sweep.json, {_name}", named="sweep.json")(sweep(_make))


def foreign_database(path):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE letters (text)")


for _name, _make in {
    "pipe": os.mkfifo,
    "folder": Path.mkdir,
    "another program's": foreign_database,
    "cut off": written("SQLite format 3\0"),
}.items():
    case("database", _name)(special(_make, "runs", "list", "--uri"))


# Names and places.


def not_utf8(folder):
    good_pictures(folder, [os.fsdecode(b"\xff\xfe")])


def steering(folder):
    good_pictures(folder, ["\x1b]0;owned\x07"])


case("names", "class that is not UTF-8", named=r"\udcff\udcfe")(among_pictures(not_utf8))
case("names", "class of terminal codes", named="owned")(among_pictures(steering))
case("names", "picture that is not UTF-8", named="udcff.txt")(
    among_pictures(
        lambda folder: Path(os.fsdecode(os.fsencode(folder / "a") + b"/\xff.txt")).touch()
    )
)


@case("names", "store that is not UTF-8", named=r"\udcff.h5")
def odd_out(place):
    out = os.fsdecode(os.fsencode(place.out) + b"/\xff.h5")
    return ["data", "prepare", "glyphs", "--out", out]


@case("names", "run that is not UTF-8", named=r"\udcff")
def odd_run(place):
    out = os.fsdecode(os.fsencode(place.out) + b"/\xff")
    return ["train", "--preset", "glyphs-5way-1shot", "--data", str(place.store), "--out", out]


@case("names", "too long", named="xxx")
def long_name(place):
    return ["data", "verify", str(place.folder / ("x" * 300))]


@case("names", "tag that leads out", named="../../secret")
def leading_tag(place):
    return ["predict", "pretrained:../../secret", *pictures_to_predict(place)]


def below_a_file(place):
    (place.folder / "file").touch()
    return place.folder / "file" / "below"


SMALL = [f"--set={key}=3" for key in ("episode.way", "episode.query", "train.way", "train.query")]


def train_to(place, out):
    return [
        "train",
        "--preset",
        "glyphs-5way-1shot",
        *SMALL,
        "--data",
        str(place.store),
        "--out",
        out,
    ]


for _name, _command in {
    "store": lambda place, out: [
        *prepare_folder(place, good_pictures(place.folder / "p"))[:-1],
        out,
    ],
    "run": train_to,
    "pictures": lambda place, out: ["embed", str(place.run), "--out", out],
    "exported": lambda place, out: ["export", str(place.run), "--out", f"{out}.pt2"],
}.items():

    @case("cannot be written", f"{_name}, below a file", named="file")
    def unwritable(place, command=_command):
        return command(place, str(below_a_file(place)))


@case("cannot be written", "store, in the kernel's files", named="/proc/")
def kernel_store(place):
    return [*prepare_folder(place, good_pictures(place.folder / "p"))[:-1], "/proc/bilevel/f.h5"]


@case("cannot be written", "run, in the kernel's files", named="/proc/")
def kernel_run(place):
    return train_to(place, "/proc/bilevel/run")
