"""Own pictures: prepared as the data set was, labelled one at a time or together, or refused."""

import dataclasses
import json
import os
import shutil
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bilevel_apps.errors import InputError
from bilevel_apps.predict import picture as predict_picture
from bilevel_apps.predict.classifier import FewShotClassifier
from bilevel_apps.predict.predict import PredictRequest, predict_pictures
from bilevel_apps.predict.preparation import fitted, inked
from bilevel_apps.runs.checkpoint import load_checkpoint, save_checkpoint
from bilevel_data import SourceData, SourceSplit, load_source, open_store, write_store

OMNIGLOT = Path(__file__).resolve().parents[3] / "shared" / "data" / "omniglot"


@pytest.fixture
def predict(monkeypatch, capsys):
    """Run bilevel-predict in this process; returns its status, stdout and stderr."""
    from bilevel_apps.cli.predict import main

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bilevel-predict", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def own(tmp_path, store):
    """Test images as pictures: three classes of one to three in `support`, nine in `query`."""
    images = open_store(store).load("test").images.reshape(6, 20, 16, 16)
    for c, name in enumerate(("ash", "birch", "cedar")):
        folder = tmp_path / "support" / name
        folder.mkdir(parents=True)
        for k in range(c + 1):
            Image.fromarray(images[c, k]).save(folder / f"{k}.png")
    (tmp_path / "query").mkdir()
    for k in range(9):
        Image.fromarray(images[k % 3, 5 + k]).save(tmp_path / "query" / f"{k}.png")
    return tmp_path


@pytest.fixture
def recorded(trained, tmp_path):
    """Make a run whose checkpoint says how its images were made, and whose store is gone."""

    def make(preprocessing):
        folder = shutil.copytree(trained, tmp_path / "recorded")
        path = folder / "best.safetensors"
        before = load_checkpoint(path)
        config = before.record["config"] | {"data": str(tmp_path / "gone.h5")}
        record = before.record | {"config": config, "preprocessing": preprocessing}
        save_checkpoint(path, dataclasses.replace(before, record=record))
        return folder

    return make


def request(own, **changes):
    return PredictRequest(**({"support": own / "support", "query": own / "query"} | changes))


def test_pictures_get_what_the_classifier_says_of_their_pixels(trained, store, own):
    found = predict_pictures(trained, request(own))
    images = open_store(store).load("test").images.reshape(6, 20, 16, 16, 1)
    X = np.stack([images[0, 0], images[1, 0], images[1, 1], *images[2, :3]])
    query = np.stack([images[k % 3, 5 + k] for k in range(9)])
    np.testing.assert_array_equal(found.support_images, X)
    np.testing.assert_array_equal(found.query_images, query)
    model = FewShotClassifier(trained).fit(X, np.repeat(found.labels, [1, 2, 3]))
    np.testing.assert_allclose(found.probabilities, model.predict_proba(query), atol=1e-12)
    assert [file.name for file in found.query] == [f"{k}.png" for k in range(9)]
    for row, p in enumerate(found.probabilities):
        label, first = found.ranked(row)[0]
        assert label == model.predict(query)[row]
        assert first == p.max()


def test_a_picture_alone_gets_the_same_answer(trained, own):
    together = predict_pictures(trained, request(own)).probabilities
    for row, file in enumerate(sorted((own / "query").iterdir())):
        (alone,) = predict_pictures(trained, request(own, query=file)).probabilities
        np.testing.assert_allclose(alone, together[row], rtol=0, atol=1e-12)


def test_the_checkpoint_says_how_its_images_were_made(recorded, own):
    as_they_are = predict_pictures(recorded("16×16"), request(own))
    shutil.rmtree(own / "recorded")
    inverted = predict_pictures(recorded("16×16 Lanczos, inverted (ink 255)"), request(own))
    assert not as_they_are.preparation.inverted
    assert inverted.preparation.inverted
    np.testing.assert_array_equal(inverted.query_images, 255 - as_they_are.query_images)
    np.testing.assert_array_equal(inverted.support_images, 255 - as_they_are.support_images)


PICTURES = {
    "grey.png": lambda rgb: Image.fromarray(rgb).convert("L"),
    "colour.jpg": Image.fromarray,
    "palette.gif": lambda rgb: Image.fromarray(rgb).convert("P"),
    "bits.bmp": lambda rgb: Image.fromarray(rgb).convert("1"),
    "see-through.png": lambda rgb: Image.fromarray(np.dstack([rgb, rgb[..., 0]])),
    "colour.webp": Image.fromarray,
}


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_prepared_as_those_of_a_folder_are(tmp_path, channels):
    rng = np.random.default_rng(0)
    for c, (height, width) in enumerate([(16, 16), (9, 30), (41, 20), (16, 17)]):
        folder = tmp_path / f"class-{c}"
        folder.mkdir()
        for name, make in PICTURES.items():
            make(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / name)
    turned = Image.Exif()
    turned[274] = 6
    path = tmp_path / "class-1" / "turned.jpg"
    Image.fromarray(rng.integers(0, 256, (8, 20, 3), dtype=np.uint8)).save(path, exif=turned)
    source = load_source("folder", tmp_path, size=16, channels=channels)
    preparation = source.preprocessing
    for split in source.splits:
        for name, images in zip(split.class_names, split.images, strict=True):
            files = sorted((tmp_path / name).iterdir())
            np.testing.assert_array_equal(
                inked(fitted(files, preparation), preparation, None), images
            )


def test_photographs_are_prepared_as_those_of_mini_imagenet_are(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    rows = ["filename,label"]
    for k, (height, width) in enumerate([(84, 84), (50, 120), (130, 90), (84, 85)]):
        pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{k}.jpg")
        rows.append(f"{k}.jpg,n{k % 2}")
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    source = load_source("mini-imagenet", tmp_path)
    preparation = source.preprocessing
    assert not preparation.inverted
    (split,) = source.splits
    for c, images in enumerate(split.images):
        files = [tmp_path / "images" / f"{k}.jpg" for k in (c, c + 2)]
        np.testing.assert_array_equal(inked(fitted(files, preparation), preparation, None), images)


@pytest.mark.data
def test_drawings_are_prepared_as_those_of_omniglot_are(tmp_path):
    if not OMNIGLOT.is_dir():
        pytest.skip(f"needs the two zips of Omniglot in {OMNIGLOT}")
    from bilevel_data.sources.omniglot import OFFICIAL, read_half

    source = load_source("omniglot", OMNIGLOT)
    preparation = source.preprocessing
    drawings = read_half(OMNIGLOT, OFFICIAL[0]) | read_half(OMNIGLOT, OFFICIAL[1])
    (test,) = (split for split in source.splits if split.name == "test")
    for name, images in list(zip(test.class_names, test.images, strict=False))[::60]:
        files = [tmp_path / f"{k}.png" for k in range(20)]
        for file, content in zip(files, drawings[name], strict=True):
            file.write_bytes(content)
        np.testing.assert_array_equal(inked(fitted(files, preparation), preparation, None), images)


def test_sources_of_bright_ink_say_so():
    assert load_source("glyphs").preprocessing.ink == "bright"


def test_as_json(predict, trained, own):
    words = [trained, "--support", own / "support", "--query", own / "query"]
    status, out, err = predict(*words, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    expected = predict_pictures(trained, request(own))
    assert list(found["support"]) == ["ash", "birch", "cedar"]
    assert [len(files) for files in found["support"].values()] == [1, 2, 3]
    assert (found["steps"], found["norm"], found["inverted"]) == (5, "ghost", False)
    assert found["checkpoint"] == str(trained / "best.safetensors")
    for row, query in enumerate(found["queries"]):
        assert query["file"] == str(own / "query" / f"{row}.png")
        p = query["probabilities"]
        assert [p[name] for name in expected.labels] == expected.probabilities[row].tolist()
        assert query["label"] == next(iter(p)) == max(p, key=p.get)


def test_for_people(predict, trained, own):
    # A name that would clear the screen, were it printed as it is.
    shutil.move(own / "support" / "ash", own / "support" / "a\x1b[2Jsh")
    words = [trained, "--support", own / "support", "--query", own / "query" / "3.png"]
    status, out, err = predict(*words, "--top", 2)
    assert (status, err) == (0, "")
    first, heading, row = out.splitlines()
    assert first == "3 classes from 6 pictures, T = 5, ghost normalisation"
    assert heading.split() == ["query", "label", "probability", "next"]
    label, *others = predict_pictures(trained, request(own, query=own / "query/3.png")).ranked(0)
    for name, p in (label, others[0]):
        shown = name if name.isprintable() else r"'a\x1b[2Jsh'"
        assert shown in row
        assert f"{100 * p:.1f} %" in row
    assert row.split()[0] == "3.png"
    assert row.isprintable()
    assert row.count("%") == 2


def test_the_picture(predict, trained, own):
    picture = own / "new" / "result.png"
    words = [trained, "--support", own / "support", "--query", own / "query"]
    status, out, _ = predict(*words, "--picture", picture)
    assert status == 0
    assert out.splitlines()[-1] == f"wrote {picture}"
    with Image.open(picture) as image:
        assert (image.format, min(image.size) > 500) == ("PNG", True)
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
        assert {(255, 255, 255), (0, 0x72, 0xB2)} <= colours
    before = picture.read_bytes()
    assert predict(*words, "--picture", picture)[0] == 0
    assert picture.read_bytes() == before
    assert [entry.name for entry in picture.parent.iterdir()] == ["result.png"]


def test_a_picture_of_many_things_with_odd_names(monkeypatch):
    monkeypatch.setattr(predict_picture, "MOST_CLASSES", 5)
    monkeypatch.setattr(predict_picture, "MOST_QUERIES", 7)
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    names = ["$x^$ {", "一", "a\nb", "long " * 20, *map(str, range(6))]
    ranked = [(names[0], 0.7), (names[1], 0.3)]
    draw = {
        "support": {name: np.stack([image] * 9) for name in names},
        "query": dict.fromkeys(names, (image, ranked)),
        "inverted": True,
    }
    assert predict_picture.draw_prediction(**draw).startswith(b"\x89PNG")
    one = {"support": {"a": image[None], "b": image[None]}, "query": {"q": (image, ranked[:1])}}
    assert predict_picture.draw_prediction(**one, inverted=False).startswith(b"\x89PNG")


def huge_png(width, height):
    """A picture of so many pixels in a hundred bytes."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


def one_class(own):
    for name in ("ash", "birch"):
        shutil.rmtree(own / "support" / name)


BAD = {
    "an empty class": (
        lambda own: (own / "support" / "elm").mkdir(),
        "support/elm: no pictures: add some, or remove the directory",
    ),
    "one class": (one_class, "support: expected a directory a class, two or more, found one, 'ce"),
    "no class": (
        lambda own: shutil.rmtree(own / "support") or (own / "support").mkdir(),
        "two or more, found none",
    ),
    "no support": (
        lambda own: shutil.rmtree(own / "support"),
        "support: cannot read it (No such file",
    ),
    "no query": (
        lambda own: shutil.rmtree(own / "query"),
        "query: no such picture or folder",
    ),
    "an empty query": (
        lambda own: shutil.rmtree(own / "query") or (own / "query").mkdir(),
        "query: no pictures",
    ),
    "a query that is text": (
        lambda own: (own / "query" / "a.png").write_text("no picture"),
        "query/a.png: expected a picture (PNG",
    ),
    "300 megapixels": (
        lambda own: (own / "query" / "large.png").write_bytes(huge_png(20_000, 15_000)),
        "large.png: 300000000 pixels, more than 64000000: make it smaller",
    ),
    "70 megapixels": (
        lambda own: (own / "support" / "ash" / "large.png").write_bytes(huge_png(10_000, 7_000)),
        "large.png: 70000000 pixels, more than 64000000: make it smaller",
    ),
    "half a picture": (
        lambda own: (own / "query" / "0.png").write_bytes(
            (own / "query" / "0.png").read_bytes()[:99]
        ),
        "query/0.png: expected a picture",
    ),
}


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.replace(" ", "-"))
def test_bad_input_costs_one_line_and_writes_nothing(predict, trained, own, case):
    spoil, says = BAD[case]
    spoil(own)
    before = set(own.rglob("*"))
    words = [trained, "--support", own / "support", "--query", own / "query"]
    status, out, err = predict(*words, "--picture", own / "result.png")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {own}")
    assert says in line
    assert set(own.rglob("*")) == before


def test_what_is_no_picture_is_passed_over_and_said(predict, trained, own):
    words = [trained, "--support", own / "support", "--query", own / "query", "--json"]
    _, expected, _ = predict(*words)
    (own / "query" / "notes.txt").write_text("no picture")
    (own / "query" / "more.png").mkdir()
    (own / "query" / "l.png").symlink_to("nowhere")
    os.mkfifo(own / "query" / "p.png")
    (own / "support" / "ash" / "notes.pdf").touch()
    for folder in (own / "query", own / "support", own / "support" / "ash"):
        for name in (".DS_Store", "._0.png", "Thumbs.db", "desktop.ini"):  # nothing is said of them
            (folder / name).write_bytes(b"x")
        (folder / "__MACOSX").mkdir()
    status, out, err = predict(*words)
    assert (status, out) == (0, expected)
    (line,) = err.splitlines()
    assert line.startswith("warning: passed over 5")
    for name in ("notes.txt", "more.png", "l.png", "p.png", "notes.pdf"):
        assert name in line


def test_a_folder_in_a_folder(predict, trained, own):
    words = ["--query", own / "query", "--json"]
    _, expected, _ = predict(trained, "--support", own / "support", *words)
    (own / "top").mkdir()
    shutil.copytree(own / "support", own / "top" / "support")
    _, found, _ = predict(trained, "--support", own / "top", *words)
    probabilities = [
        [q["probabilities"] for q in json.loads(out)["queries"]] for out in (found, expected)
    ]
    assert probabilities[0] == probabilities[1]


def test_what_is_there_twice_is_said(predict, trained, own):
    shutil.copytree(own / "support" / "ash", own / "support" / "Ash")
    status, _, err = predict(trained, "--support", own / "support", "--query", own / "query")
    assert status == 0
    names, pictures = err.splitlines()
    assert "'Ash' and 'ash'" in names
    assert pictures.startswith("warning: 1 pictures are in two classes")


def strokes(ink, seed):
    rng = np.random.default_rng(seed)
    picture = Image.new("L", (16, 16), 255)
    draw = ImageDraw.Draw(picture)
    for _ in range(3):
        draw.line(rng.integers(3, 13, 4).tolist(), fill=0, width=2)
    return picture if ink == "dark" else Image.eval(picture, lambda v: 255 - v)


def draw_own(folder, ink):
    for c in range(3):
        (folder / "support" / f"c{c}").mkdir(parents=True)
        for k in range(2):
            strokes(ink, 10 * c + k).save(folder / "support" / f"c{c}" / f"{k}.png")
    (folder / "query").mkdir()
    for k in range(4):
        strokes(ink, 100 + k).save(folder / "query" / f"{k}.png")
    return folder


DRAWN = {"size": [16, 16], "channels": 1, "inverted": True, "crop": True, "ink": "bright"}


def test_the_ink_of_drawings(recorded, tmp_path):
    """Dark and bright drawings get the same images, and every choice does what it says."""
    run = recorded(DRAWN | {"note": ""})
    dark, bright = (draw_own(tmp_path / ink, ink) for ink in ("dark", "bright"))
    expected = predict_pictures(run, request(dark))
    for folder, ink in ((bright, "auto"), (dark, "dark"), (bright, "bright"), (bright, "keep")):
        found = predict_pictures(run, request(folder, ink=ink))
        np.testing.assert_array_equal(found.query_images, expected.query_images)
        np.testing.assert_array_equal(found.support_images, expected.support_images)
    inverted = predict_pictures(run, request(bright, ink="invert"))
    np.testing.assert_array_equal(inverted.query_images, 255 - expected.query_images)
    with pytest.raises(InputError, match="`ink`=white"):
        predict_pictures(run, request(dark, ink="white"))


def test_the_ink_is_said(predict, recorded, tmp_path):
    run = recorded(DRAWN | {"note": ""})
    folder = draw_own(tmp_path / "bright", "bright")
    words = [run, "--support", folder / "support", "--query", folder / "query"]
    status, _, err = predict(*words)
    assert (status, len(err.splitlines())) == (0, 1)
    assert err.startswith("bright ink, by the borders")
    assert predict(*words, "--ink", "keep")[2] == ""


def test_photographs_have_no_ink_to_choose(trained, own):
    with pytest.raises(InputError, match="no ink that is known"):
        predict_pictures(trained, request(own, ink="dark"))


def test_many_queries_are_drawn_on_pages(monkeypatch, trained, own):
    from bilevel_apps.predict import predict as module

    drawn = []
    draw = module.draw_prediction
    monkeypatch.setattr(module, "MOST_QUERIES", 4)
    monkeypatch.setattr(
        module, "draw_prediction", lambda **given: (drawn.append(given["query"]), draw(**given))[1]
    )
    found = predict_pictures(trained, request(own, picture=own / "result.png"))
    assert found.pages == tuple(
        own / name for name in ("result.png", "result-2.png", "result-3.png")
    )
    assert all(page.read_bytes().startswith(b"\x89PNG") for page in found.pages)
    shown = [(name, *ranked[0]) for page in drawn for name, (_, ranked) in page.items()]
    assert [len(page) for page in drawn] == [4, 4, 1]
    assert sorted(name for name, *_ in shown) == [f"{k}.png" for k in range(9)]
    order = [(found.labels.index(label), -p) for _, label, p in shown]
    assert order == sorted(order)
    shutil.copy(own / "query" / "0.png", own / "query" / "result-2.png")
    with pytest.raises(InputError, match="one of the pictures"):
        predict_pictures(trained, request(own, picture=own / "query" / "result.png"))


@pytest.mark.parametrize(
    ("variable", "most", "says"),
    [
        ("BILEVEL_MAX_PICTURE_BYTES", "10", "bytes of a picture, more than 10"),
        ("BILEVEL_MAX_ENTRIES", "2", "files in a folder or zip, more than 2"),
    ],
)
def test_limits_hold_here_too(predict, trained, own, monkeypatch, variable, most, says):
    monkeypatch.setenv(variable, most)
    status, out, err = predict(trained, "--support", own / "support", "--query", own / "query")
    assert (status, out) == (2, "")
    assert says in err


def test_places_where_the_picture_cannot_go(predict, trained, own):
    words = [trained, "--support", own / "support", "--query", own / "query" / "0.png"]
    (own / "file").touch()
    (own / "folder.png").mkdir()
    before = {path: path.read_bytes() for path in own.rglob("*") if path.is_file()}
    for place, says in {
        own / "result.jpg": "expected a name that ends in .png",
        own / "folder.png": "is a folder or one of the pictures",
        own / "query" / "0.png": "is a folder or one of the pictures",
        own / "support" / "ash" / ".." / "ash" / "0.png": "is a folder or one of the pictures",
        own / "file" / "result.png": "is not a folder",
        own / f"{'x' * 300}.png": "File name too long",
    }.items():
        status, out, err = predict(*words, "--picture", place)
        assert (status, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert says in line
    assert {path: path.read_bytes() for path in own.rglob("*") if path.is_file()} == before


def two_channels(folder):
    rng = np.random.default_rng(0)
    splits = (
        SourceSplit(
            name=name,
            class_names=tuple(f"{name}-{c}" for c in range(5)),
            class_sizes=(6,) * 5,
            image_shape=(16, 16, 2),
            images=[rng.integers(0, 256, (6, 16, 16, 2), dtype=np.uint8) for _ in range(5)],
        )
        for name in ("train", "val")
    )
    source = SourceData(
        name="pairs",
        licence="CC0",
        source="made by a test",
        preprocessing="none",
        rotations_are_classes=False,
        splits=tuple(splits),
    )
    write_store(folder / "pairs.h5", source)
    return folder / "pairs.h5"


def test_runs_that_do_not_fit(predict, trained, own, config, recorded, make_store):
    words = ["--support", own / "support", "--query", own / "query"]

    def refused(*arguments):
        status, out, err = predict(*arguments, *words)
        assert (status, out) == (2, "")
        (line,) = err.splitlines()
        return line

    from bilevel_apps.training.loop import train

    pairs = two_channels(own)
    train(config(data=str(pairs), train__steps=1), own / "run", resume=False)
    assert "images of 2 channels, but pictures have 1 (grey) or 3" in refused(own / "run")
    # A checkpoint that does not say how its images were made, and stores that cannot.
    folder = recorded(None)
    line = refused(folder)
    assert "gone.h5: " in line
    assert "--data" in line
    other = make_store(size=20)
    line = refused(folder, "--data", other)
    assert f"{other}: images of (height, width, channels) (20, 20, 1), but the run" in line
    assert f"{pairs}: images of (height, width, channels) (16, 16, 2), but" in refused(
        folder, "--data", pairs
    )
    assert "no run here" in refused(own)
    assert "damaged or not a checkpoint" in refused(own / "query" / "0.png")
    assert "--device tpu: expected auto, cpu or cuda" in refused(trained, "--device", "tpu")


def test_a_transductive_run_costs_a_line(predict, own, config):
    from bilevel_apps.training.loop import train

    train(config(model__norm="episode", train__steps=2), own / "run", resume=False)
    words = ["--support", own / "support", "--query", own / "query" / "0.png"]
    status, out, err = predict(own / "run", *words)
    assert status == 0
    (line,) = err.splitlines()
    assert line.startswith("warning: the run normalises queries by the statistics of all of them")
    assert "episode normalisation" in out


def test_help_names_the_options(predict):
    status, out, err = predict("--help")
    assert (status, err) == (0, "")
    for word in ("DIR", "--support", "--query", "--data", "--picture", "--top", "--json"):
        assert word in out
    assert "--debug" in out
    assert predict() == (0, out, "")
