"""torchvision's data sets as sources, from files made here; nothing is fetched."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from bilevel_data import SOURCES, DataError, load_source, open_store, verify_store, write_store
from bilevel_data.sources.torchvision import library as torchvision_library
from bilevel_data.sources.torchvision import parts as torchvision_parts
from bilevel_data.sources.torchvision.library import import_datasets
from bilevel_data.splits import by_fraction, from_file

LABELS = {True: [k % 10 for k in range(40)], False: [9 - k % 10 for k in range(20)]}


@pytest.fixture(scope="module")
def datasets():
    try:
        return import_datasets()
    except DataError as err:
        pytest.skip(str(err))


def idx(array):
    array = np.ascontiguousarray(array, dtype=np.uint8)
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return head + array.tobytes()


def pixels(train):
    return np.random.default_rng(int(train)).integers(
        0, 256, (len(LABELS[train]), 28, 28), dtype=np.uint8
    )


@pytest.fixture
def root(tmp_path, datasets):
    """FashionMNIST in small: four training and two test pictures of each class."""
    folder = tmp_path / "root" / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for train, stem in ((True, "train"), (False, "t10k")):
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(pixels(train)))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx(LABELS[train]))
    return tmp_path / "root"


def build(name, path=None, **options):
    data = load_source(f"torchvision:{name}", path, **options)
    return data, {
        split.name: dict(zip(split.class_names, split.images, strict=True)) for split in data.splits
    }


def refused(name, message, path=None, **options):
    with pytest.raises(DataError, match=message) as caught:
        load_source(f"torchvision:{name}", path, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_fashion_mnist(root, datasets, tmp_path):
    data = load_source("torchvision:FashionMNIST", root)
    write_store(tmp_path / "f.h5", data)
    manifest = verify_store(tmp_path / "f.h5")
    assert manifest.name == "torchvision:FashionMNIST"
    assert "64/16/20 by seed 0" in manifest.preprocessing.note
    store = open_store(tmp_path / "f.h5")
    names = datasets.FashionMNIST.classes
    expected = by_fraction(names, seed=0)
    for name in store.splits:
        split = store.load(name)
        assert split.class_names == expected[name]
        for c, text in enumerate(split.class_names):
            label = names.index(text)
            whole = np.concatenate(
                [pixels(train)[np.array(LABELS[train]) == label] for train in (True, False)]
            )
            found = split.images[split.offsets[c] : split.offsets[c + 1]]
            np.testing.assert_array_equal(found[..., 0], whole)


def test_options(root):
    data, splits = build(
        "FashionMNIST", root, size=14, channels=3, seed=3, fractions=[0.5, 0.2, 0.3]
    )
    assert [len(found) for found in splits.values()] == [5, 2, 3]
    assert data.splits[0].image_shape == (14, 14, 3)
    assert "50/20/30 by seed 3" in data.preprocessing.note
    names = tuple(name for found in splits.values() for name in found)
    dealt = by_fraction(names, (0.5, 0.2, 0.3), seed=3)
    assert {name: tuple(found) for name, found in splits.items()} == dealt


def test_splits_of_a_file(root, tmp_path):
    file = tmp_path / "splits.json"
    file.write_text(json.dumps({"test": ["Sneaker"], "train": ["Coat", "Bag"]}))
    data, splits = build("FashionMNIST", root, splits=str(file))
    assert {name: tuple(found) for name, found in splits.items()} == {
        "train": ("Bag", "Coat"),
        "test": ("Sneaker",),
    }
    assert data.preprocessing.note == "classes as in a file"
    for options in ({"seed": 1}, {"fractions": [0.5, 0.2, 0.3]}):
        refused("FashionMNIST", "leave out fractions and seed", root, splits=file, **options)


def test_pictures_of_many_sizes(datasets, tmp_path):
    """As `folder` does: the middle square, resized; the first picture decides what is left out."""
    rng = np.random.default_rng(0)
    for c in "abc":
        (tmp_path / c).mkdir()
        for k in range(2):
            array = rng.integers(0, 256, (20 + k, 30 - k, 3), dtype=np.uint8)
            Image.fromarray(array).save(tmp_path / c / f"{k}.png")
    _, splits = build("ImageFolder", tmp_path)
    own = load_source("folder", tmp_path, size=20)
    assert [tuple(found) for found in splits.values()] == [s.class_names for s in own.splits]
    for split, found in zip(own.splits, splits.values(), strict=True):
        np.testing.assert_array_equal(np.stack(list(found.values())), np.stack(list(split.images)))
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="ImageFolder: item 3 of part 1: cannot read it: "):
        build("ImageFolder", tmp_path)


NAMES = ("cat", "dog", "eel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ("[" * 100_000, "expected JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected an object with some of train, val, test"),
        ('{"training": ["cat"]}', "expected an object with some of"),
        ('{"train": "cat"}', "expected an object with some of"),
        ('{"train": []}', "expected an object with some of"),
        ('{"train": ["cow"]}', "expected class names such as 'cat', 'dog', 'eel', found 'cow'"),
        ('{"train": [3]}', "expected class names such as .*, found 3"),
        ('{"train": [["cat"]]}', "expected class names such as"),
        ('{"train": ["cat"], "test": ["cat"]}', "expected each class once, found 'cat' twice"),
        ('{"train": ["cat", "cat"]}', "expected each class once"),
        ("[" + " " * (8 << 20) + "]", "more than 8388608 bytes"),
    ],
)
def test_wrong_files_of_splits(tmp_path, text, message):
    file = tmp_path / "splits.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        from_file(NAMES, file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_no_file_of_splits(tmp_path):
    with pytest.raises(DataError, match=r"cannot read this file of splits \(No such file"):
        from_file(NAMES, tmp_path / "none.json")


@pytest.mark.parametrize("name", ["", "NAME", "Nothing", "os", "VisionDataset2", "__doc__", "wrap"])
def test_unknown_names(datasets, name):
    refused(name, "expected a data set of torchvision.datasets, found")


def test_the_name_is_needed():
    for name in ("torchvision", "glyphs:x", "torchvisions:CIFAR10"):
        with pytest.raises(DataError, match=r"expected one of .*folder, torchvision:NAME.*, found"):
            load_source(name)
    assert "torchvision:NAME" in SOURCES


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("FashionMNIST", {"size": 0}, "FashionMNIST: size: expected a whole number in 1"),
        ("FashionMNIST", {"size": True}, "size: expected"),
        ("FashionMNIST", {"channels": 2}, "channels: expected 1 or 3, found 2"),
        ("FashionMNIST", {"part": "train"}, "it has no parts to choose"),
        ("FashionMNIST", {"fractions": [0.5, 0.5]}, "fractions: expected three numbers"),
        ("FashionMNIST", {"fractions": 1}, "fractions: expected three numbers"),
        ("FashionMNIST", {"fractions": ["a", 1, 2]}, "fractions: expected three numbers"),
        ("FashionMNIST", {"fractions": [0.5, 0.4, 0.3]}, "three positive shares"),
        ("FashionMNIST", {"fractions": [0.5, 0.5, float("nan")]}, "three positive shares"),
        ("FashionMNIST", {"train": True}, "unknown option 'train'; its options: size"),
        ("MNIST", {}, "cannot open it: Dataset not found"),
        ("GTSRB", {}, "cannot open it: Dataset not found"),
        ("SEMEION", {}, "cannot open it: Dataset not found"),
        ("GTSRB", {"part": "x"}, "cannot open it: Unknown value 'x' for argument split"),
        ("CelebA", {}, "expected the part to take"),
        ("CLEVRClassification", {}, "expected the part to take"),
        ("DatasetFolder", {}, "cannot open it: .*loader"),
        ("ImageFolder", {"download": True}, "torchvision cannot download it"),
        ("FakeData", {}, "it reads no files: leave out the path"),
    ],
)
def test_wrong_arguments(root, name, options, message):
    refused(name, message, root, **options)


def test_wrong_roots(datasets, tmp_path):
    for path in (None, tmp_path / "none"):
        refused("FashionMNIST", "expected the folder that is torchvision's root", path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bad", [b"", b"\0" * 8, idx(LABELS[True])[:-7]])
def test_damaged_files(root, bad):
    (root / "FashionMNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(bad)
    refused("FashionMNIST", "torchvision:FashionMNIST: cannot open it: ", root)


def test_labels_are_found_where_no_list_of_them_is(datasets, monkeypatch):
    """FakeData has no list of labels, no class names and no files."""
    import torch

    small = datasets.FakeData(size=30, image_size=(3, 90, 100), num_classes=4)
    monkeypatch.setattr(
        datasets,
        "FakeData",
        type(
            "Small", (datasets.FakeData,), {"__init__": lambda self: vars(self).update(vars(small))}
        ),
    )
    state = torch.get_rng_state()
    data, splits = build("FakeData")
    assert data.splits[0].image_shape == (84, 84, 3)
    names = sorted(name for found in splits.values() for name in found)
    assert names == [f"class {k}" for k in range(4)]
    assert sum(len(images) for found in splits.values() for images in found.values()) == 30
    assert torch.equal(torch.get_rng_state(), state)


class Standing:
    """What the tests below make a data set of."""

    def __init__(self, items, **attributes):
        self.items = items
        vars(self).update(attributes)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, k):
        return self.items[k]


GREY = Image.new("L", (4, 4))


@pytest.fixture
def standing(monkeypatch):
    """Data sets of this name are made by a test, and torchvision is not needed."""

    def put(*parts, known=("root", "split")):
        waiting = iter(parts)
        monkeypatch.setattr(torchvision_parts, "_find", lambda _: lambda **_: next(waiting))
        monkeypatch.setattr(torchvision_parts, "_parameters", lambda _: set(known))

    return put


def test_names_of_classes(standing, tmp_path):
    items = [(GREY, k) for k in (0, 2, 1, 2)]
    cases = [
        ({"classes": ["a", "b", "c"]}, ["a", "b", "c"]),
        ({"categories": ("a", "b", "c", "d")}, ["a", "b", "c"]),
        ({"classes": [("a", "A"), ("b",), ("c",)]}, ["a, A", "b", "c"]),
        ({"classes": ["a", "a", "c"]}, ["class 0", "class 1", "class 2"]),
        ({"classes": ["a", "b"]}, ["class 0", "class 1", "class 2"]),
        ({}, ["class 0", "class 1", "class 2"]),
    ]
    for attributes, names in cases:
        standing(Standing(items, **attributes), known=())
        found = torchvision_parts.open_parts("x", None, download=False, part=None)
        assert list(found.classes) == names
        assert list(found.classes.values()) == [((0, 0),), ((0, 2),), ((0, 1), (0, 3))]


@pytest.mark.parametrize("key", ["targets", "labels", "_labels", "y"])
@pytest.mark.parametrize("kind", [list, np.array, lambda found: [np.int64(k) for k in found]])
def test_lists_of_labels_save_reading_the_pictures(standing, key, kind):
    class Unread(Standing):
        def __getitem__(self, k):
            raise AssertionError

    standing(Unread([None] * 3, **{key: kind([2, 0, 1])}), known=())
    found = torchvision_parts.open_parts("x", None, download=False, part=None)
    assert dict(found.labels) == {f"class {k}": k for k in range(3)}


def test_parts_must_agree_on_names(standing, tmp_path):
    items = [(GREY, 0)]
    standing(Standing(items, classes=["a"]), Standing(items, classes=["b"]))
    with pytest.raises(DataError, match="its parts name their classes differently: take one"):
        torchvision_parts.open_parts("SVHN", tmp_path, download=False, part=None)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((GREY, "cat"), "expected a picture and one whole number as its label"),
        ((GREY, 1.5), "expected a picture and one whole number"),
        ((GREY, -1), "expected a picture and one whole number"),
        ((GREY, True), "expected a picture and one whole number"),
        ((GREY, [1, 2]), "expected a picture and one whole number"),
        ((GREY, 1, 2), "expected a picture and one whole number"),
        (GREY, "expected a picture and one whole number"),
    ],
)
def test_data_sets_without_a_label_a_picture(standing, item, message):
    standing(Standing([(GREY, 0), item]), known=())
    with pytest.raises(DataError, match=f"x: item 1: {message}"):
        torchvision_parts.open_parts("x", None, download=False, part=None)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ((np.zeros((4, 4, 3)), 1), "expected a picture, found ndarray"),
        ((GREY, 2), "expected label 1, found 2"),
        ((Image.new("CMYK", (4, 4)), 1), "colours in CMYK"),
        (None, "expected a picture and one whole number"),
    ],
)
def test_bad_items_are_refused_when_they_are_read(standing, monkeypatch, item, message):
    monkeypatch.setattr(
        sys.modules["bilevel_data.sources.torchvision.source"],
        "version",
        lambda _: "0",
        raising=True,
    )
    items = [(GREY, 0), item, (GREY, 2)]
    standing(Standing(items, targets=[0, 1, 2]), known=())
    with pytest.raises(DataError, match=message):
        build("x")


def test_arguments_that_a_class_hands_to_its_parent(datasets):
    known = torchvision_parts._parameters
    assert {"root", "split", "train", "download"} <= known(datasets.EMNIST)
    assert {"root", "split", "download"} <= known(datasets.GTSRB)
    assert "train" not in known(datasets.GTSRB)
    assert "root" not in known(datasets.FakeData)
    for name in torchvision_parts._PARTS:
        assert "split" in known(getattr(datasets, name))


def fake_import(monkeypatch, *outcomes):
    """`import_module` gives or raises these in turn; returns what was asked for."""
    waiting, asked, defined = iter(outcomes), [], []

    class Library:
        define = staticmethod(lambda *words: defined.append(words[0]))

    def run(name):
        asked.append(name)
        found = Library if name == "torch.library" else next(waiting)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(torchvision_library, "import_module", run)
    return asked, defined


SYMPTOM = RuntimeError("operator torchvision::nms does not exist")


def test_a_healthy_torchvision_is_imported_once(monkeypatch):
    asked, defined = fake_import(monkeypatch, "module")
    assert import_datasets() == "module"
    assert (asked, defined) == (["torchvision.datasets"], [])


def test_missing_operators_are_declared(monkeypatch):
    asked, defined = fake_import(monkeypatch, SYMPTOM, "module")
    assert import_datasets() == "module"
    assert asked == ["torchvision.datasets", "torch.library", "torchvision.datasets"]
    assert defined == ["torchvision::nms", "torchvision::qnms"]


@pytest.mark.parametrize(
    "error", [RuntimeError("another"), ImportError("x"), ModuleNotFoundError("x", name="x")]
)
def test_other_failures_are_not_hidden(monkeypatch, error):
    asked, defined = fake_import(monkeypatch, error)
    with pytest.raises(type(error)) as caught:
        import_datasets()
    assert caught.value is error
    assert (len(asked), defined) == (1, [])


@pytest.mark.parametrize("name", ["torch", "torchvision"])
def test_not_installed(monkeypatch, name):
    fake_import(monkeypatch, ModuleNotFoundError(name, name=name))
    with pytest.raises(DataError, match=r"install bilevel-data\[torchvision\]"):
        load_source("torchvision:CIFAR10")


@pytest.mark.process
def test_a_fresh_process_can_import_it(datasets):
    code = (
        "from bilevel_data.sources.torchvision.library import import_datasets as get\n"
        "get(); import torchvision.transforms.v2; print(get().MNIST.__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "MNIST\n"), done.stderr
