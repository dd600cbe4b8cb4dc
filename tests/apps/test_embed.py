"""What `bilevel-embed` finds is exact, what it draws can be opened, and nothing is half-written."""

import base64
import dataclasses
import json
import re
import sys
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

import browser
from bilevel_apps.cli import embed as command_line
from bilevel_apps.embed import EmbedRequest, embed_run
from bilevel_apps.embed.figures import compare_with_pixels
from bilevel_apps.embed.map import draw_map
from bilevel_apps.embed.neighbours import draw_wall, nearest
from bilevel_apps.embed.page import html_page
from bilevel_apps.embed.pairs import extreme_pairs
from bilevel_apps.embed.projection import Projection, principal_components, tsne
from bilevel_apps.embed.samples import Embedded, balanced, embed_images
from bilevel_apps.embed.separation import separation
from bilevel_apps.errors import InputError, RunError
from bilevel_apps.runs.load import load_run
from bilevel_apps.system.files import write_files
from bilevel_data import open_store

FILES = ["pairs.png", "neighbours.png", "map-pca.png", "map.html", "embeddings.npz"]


def embedded(n, seed, near=0.0, dim=6):
    drawn = np.random.default_rng(seed).random((n, dim))
    return Embedded(
        pixels=np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1),
        features=(1 + near * drawn if near else drawn).astype(np.float32),
        labels=np.arange(n),
    )


def brute_force(a, b):
    """Every distance, one after the other, in float64."""
    return np.array(
        [[sum((float(p) - float(q)) ** 2 for p, q in zip(x, y, strict=True)) for y in b] for x in a]
    )


@pytest.mark.parametrize("near", [0.0, 1e-6], ids=["spread", "almost equal"])
def test_the_first_pairs_are_those_of_a_brute_force_search(near):
    a, b = embedded(7, 0, near), embedded(9, 1, near)
    distances = np.sqrt(brute_force(a.features, b.features))
    closest, farthest = extreme_pairs(a, b, 3)
    assert closest[0].numbers == np.unravel_index(distances.argmin(), distances.shape)
    assert farthest[0].numbers == np.unravel_index(distances.argmax(), distances.shape)
    for pair in closest + farthest:
        assert pair.distance == pytest.approx(distances[pair.numbers], rel=1e-12)
        assert tuple(int(image.item()) for image in pair.images) == pair.numbers


def test_pairs_come_in_order_and_no_image_comes_twice():
    closest, farthest = extreme_pairs(embedded(6, 2), embedded(5, 3), 9)
    for pairs, sign in ((closest, 1), (farthest, -1)):
        assert len(pairs) == 5
        ordered = [sign * pair.distance for pair in pairs]
        assert ordered == sorted(ordered)
        for images in zip(*(pair.numbers for pair in pairs), strict=True):
            assert len(set(images)) == 5


def test_no_pair_of_classes_comes_twice():
    two = np.arange(8) % 2
    a, b = (dataclasses.replace(embedded(8, seed), labels=two) for seed in (4, 5))
    for pairs in extreme_pairs(a, b, 8):
        classes = [tuple(number % 2 for number in pair.numbers) for pair in pairs]
        assert sorted(classes) == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize("near", [0.0, 1e-6], ids=["spread", "almost equal"])
def test_neighbours_are_those_of_a_brute_force_search(near):
    features = embedded(12, 6, near).features
    queries = np.array([3, 0, 11])
    distances = brute_force(features[queries], features)
    rows = zip(distances, queries, strict=True)
    expected = [[k for k in np.argsort(row) if k != q][:5] for row, q in rows]
    assert nearest(features, queries, 5).tolist() == expected


def test_a_copy_of_the_query_is_its_neighbour_and_the_query_is_not():
    features = np.array([[1.0, 0], [0, 1], [1, 0], [1, 0]], np.float32)
    assert nearest(features, np.array([2]), 3).tolist() == [[0, 3, 1]]


def test_separation_by_its_definitions():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [4, 3, 2])
    vectors = rng.normal(size=(9, 5)) + labels[:, None]
    distances = np.sqrt(brute_force(vectors, vectors))
    right_mean = right_image = 0
    silhouettes = []
    for k in range(9):
        others = np.arange(9) != k
        means = [vectors[others & (labels == c)].mean(axis=0) for c in range(3)]
        to_means = [np.linalg.norm(vectors[k] - mean) for mean in means]
        right_mean += int(np.argmin(to_means)) == labels[k]
        right_image += labels[np.where(others, distances[k], np.inf).argmin()] == labels[k]
        within = distances[k, others & (labels == labels[k])].mean()
        next_class = min(distances[k, labels == c].mean() for c in range(3) if c != labels[k])
        silhouettes.append((next_class - within) / max(next_class, within))
    found = separation(vectors, labels)
    assert found.centroid_accuracy == right_mean / 9
    assert found.neighbour_accuracy == right_image / 9
    assert found.silhouette == pytest.approx(np.mean(silhouettes), rel=1e-6)
    assert 0 < right_mean < 9  # neither figure could be a constant
    assert 0 < right_image < 9


def test_an_image_does_not_vouch_for_itself():
    """Each class has two images far apart, and each image lies by one of the other class."""
    vectors, labels = np.array([[0.0], [10], [1], [11]]), np.array([0, 0, 1, 1])
    found = separation(vectors, labels)
    assert (found.centroid_accuracy, found.neighbour_accuracy) == (0, 0)


def test_balanced_takes_equally_many_of_each_class():
    labels = np.repeat(np.arange(6), 10)
    chosen = balanced(labels, 20, np.random.default_rng(0))
    assert np.bincount(labels[chosen]).tolist() == [3] * 6
    assert (np.diff(chosen) > 0).all()
    some = balanced(labels, 20, np.random.default_rng(0), classes=4)
    assert sorted(np.bincount(labels[some], minlength=6)) == [0, 0, 5, 5, 5, 5]
    few = balanced(labels, 4, np.random.default_rng(0))  # two images of each class that is kept
    assert sorted(np.bincount(labels[few], minlength=6)) == [0, 0, 0, 0, 2, 2]
    assert len(balanced(labels, 1000, np.random.default_rng(0))) == 60


def test_images_are_encoded_in_their_own_order(trained, store, monkeypatch):
    run, split = load_run(trained, "cpu"), open_store(store).load("test")
    run.learner.unit_length = False
    labels = np.zeros(len(split.images), np.int64)
    whole = embed_images(run, split.images, labels, seed=0).features
    monkeypatch.setattr("bilevel_apps.embed.samples.BATCH_PIXELS", 16 * 16 * 7)
    parts = embed_images(run, split.images, labels, seed=5).features
    # Running averages: what else is encoded makes no difference.
    np.testing.assert_allclose(parts, whole, rtol=0, atol=1e-5)
    assert len(np.unique(whole.round(3), axis=0)) > len(whole) / 2


def test_principal_components_keep_the_most_variance():
    rng = np.random.default_rng(0)
    features = (rng.normal(size=(50, 4)) * [0.1, 3, 0.2, 2] + 7).astype(np.float32)
    found = principal_components(features)
    values = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64)))
    np.testing.assert_allclose(found.points.var(axis=0, ddof=1), values[:-3:-1], rtol=1e-9)
    assert found.axes[0] == f"component 1: {values[-1] / values.sum():.0%} of the variance"


def test_tsne_keeps_groups_together_and_is_the_same_twice():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 8)
    features = (rng.normal(size=(16, 5)) + 30 * labels[:, None]).astype(np.float32)
    found = tsne(features, seed=3)
    assert separation(found.points, labels).neighbour_accuracy == 1
    assert (tsne(features, seed=3).points == found.points).all()


@pytest.fixture(scope="module")
def looked(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("embed") / "new" / "folder"
    request = EmbedRequest(pairs=3, queries=2, neighbours=4, classes=3, tsne=True, device="cpu")
    return out, embed_run(trained, out, request)


def test_the_files_of_a_run(looked):
    out, found = looked
    assert [path.name for path in found.files] == [*FILES[:3], "map-tsne.png", *FILES[3:]]
    assert sorted(out.iterdir()) == sorted(found.files)
    for path in found.files:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert min(image.size) > 300
                assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)
            assert path.stat().st_size < 300_000


def test_pictures_have_the_colours_that_they_speak_of(looked):
    out, _ = looked
    for name, wanted in (
        ("pairs.png", ["0072b2", "009e73"]),
        ("map-pca.png", ["0072b2", "d55e00", "009e73"]),
    ):
        with Image.open(out / name) as image:
            there = {rgb for _, rgb in image.convert("RGB").getcolors(maxcolors=1 << 22)}
        assert {tuple(bytes.fromhex(colour)) for colour in ("ffffff", *wanted)} <= there, name


def test_the_saved_features_give_the_pairs(looked):
    out, found = looked
    with np.load(out / "embeddings.npz", allow_pickle=False) as saved:
        arrays = dict(saved)
    distances = np.sqrt(brute_force(arrays["pair_features_a"], arrays["pair_features_b"]))
    for kind, best in (("nearest", distances.min()), ("farthest", distances.max())):
        assert arrays[f"pair_{kind}_distance"][0] == pytest.approx(best, rel=1e-12)
        assert distances[tuple(arrays[f"pair_{kind}"][0])] == pytest.approx(best, rel=1e-12)
    assert arrays["features"].shape[0] == arrays["labels"].shape[0] == 120
    assert arrays["class_names"].tolist() == [f"test-{c}" for c in range(6)]
    assert found.figures.representation == separation(arrays["features"], arrays["labels"])
    shown = arrays["labels"][arrays["map_images"]]
    assert np.unique(shown, return_counts=True)[1].tolist() == [20, 20, 20]
    assert arrays["map_pca"].shape == arrays["map_tsne"].shape == (60, 2)


def test_the_same_request_gives_the_same_files(trained, tmp_path):
    request = EmbedRequest(pairs=2, queries=2, neighbours=2, seed=4, device="cpu")
    for name in "ab":
        embed_run(trained, tmp_path / name, request)
    for name in FILES[:4]:  # an npz holds the time of day
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def content_of(page):
    """What the page's script is given."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.decode(), re.DOTALL)[1])


def many(n, side, channels, classes, seed=0):
    rng = np.random.default_rng(seed)
    return Embedded(
        pixels=rng.integers(0, 256, (n, side, side, channels), dtype=np.uint8),
        features=rng.normal(size=(n, 8)).astype(np.float32),
        labels=np.arange(n) % classes,
    )


def page_of(images, names, title="a run"):
    return html_page(
        images,
        [principal_components(images.features)],
        names=names,
        title=title,
        figures=compare_with_pixels(images, "test"),
    )


def test_the_page_stands_alone(looked):
    out, _ = looked
    page = (out / "map.html").read_bytes()
    assert b"http:" not in page
    assert b"https:" not in page
    assert b"//cdn" not in page
    assert b"default-src 'none'" in page
    content = content_of(page)
    assert [one["name"] for one in content["maps"]] == ["t-SNE", "PCA"]
    assert len(content["labels"]) == len(content["neighbours"]) == 60


def test_the_page_holds_every_image():
    images = many(10, 12, 1, 2)
    content = content_of(page_of(images, ["a", "b"]))
    kind, _, data = content["atlas"]["image"].partition(";base64,")
    assert kind == "data:image/png"
    with Image.open(BytesIO(base64.b64decode(data))) as sheet:
        ink = np.asarray(sheet)[..., 1]
    tile, columns = content["atlas"]["tile"], content["atlas"]["columns"]
    assert tile == 12
    for k, pixels in enumerate(images.pixels):
        row, column = divmod(k, columns)
        found = ink[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        np.testing.assert_array_equal(found, pixels[..., 0])


def test_the_page_is_small_even_with_photographs_of_noise():
    assert len(page_of(many(400, 84, 3, 20), [f"class {c}" for c in range(20)])) < 3_000_000


def test_names_cannot_leave_their_place():
    evil = "</script><script>alert(1)</script>"
    page = page_of(many(6, 8, 1, 2), [evil, "b"], title=evil)
    assert page.count(b"</script>") == 2
    assert b"<script>alert" not in page
    assert content_of(page)["names"] == [evil, "b"]


def test_points_that_coincide_are_still_drawn():
    images = dataclasses.replace(many(6, 8, 1, 2), features=np.ones((6, 8), np.float32))
    same = Projection(name="PCA", points=np.zeros((6, 2)))
    assert draw_map(images, same, names=["a", "b"], split="test").startswith(b"\x89PNG")
    assert page_of(dataclasses.replace(images, features=many(6, 8, 1, 2).features), ["a", "b"])


def test_names_are_no_formulas():
    images = many(6, 8, 1, 2)
    points = Projection(name="PCA", points=np.arange(12.0).reshape(6, 2))
    names = ["$x_1$", "$test0_$"]
    assert draw_map(images, points, names=names, split="test").startswith(b"\x89PNG")


@pytest.mark.parametrize("channels", [1, 3])
def test_the_wall_marks_what_is_right(channels):
    images = many(12, 16, channels, 3)
    queries = np.array([0, 1])
    right, wrong = np.array([[3, 6], [4, 7]]), np.array([[1, 2], [0, 2]])

    def colours(neighbours):
        picture = draw_wall(images, queries, neighbours, split="test")
        with Image.open(BytesIO(picture)) as image:
            return {rgb for _, rgb in image.convert("RGB").getcolors(maxcolors=1 << 22)}

    green, vermillion = (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)
    assert green in colours(right)
    assert vermillion not in colours(right)
    assert vermillion in colours(wrong)
    assert green not in colours(wrong)


def test_refusals_write_nothing(trained, tmp_path, make_store):
    out = tmp_path / "pictures"
    with pytest.raises(InputError, match=r"`split_b`=nowhere: .* choose one of train"):
        embed_run(trained, out, EmbedRequest(split_b="nowhere"))
    larger = make_store(size=20)
    with pytest.raises(
        InputError, match=r"\(20, 20, 1\), but the run was trained on \(16, 16, 1\)"
    ):
        embed_run(trained, out, EmbedRequest(data=larger))
    assert not out.exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    for place in (blocked, blocked / "below", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="cannot write here"):
            embed_run(trained, place, EmbedRequest())


def test_a_file_that_cannot_be_written_leaves_the_others_alone(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    too_long = "x" * 300
    with pytest.raises(RunError, match="cannot write here"):
        write_files(tmp_path, {"a.png": b"new", too_long: b"new"})
    assert (tmp_path / "a.png").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["bilevel-embed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code, *capsys.readouterr()

    return run


SMALL = ("--pairs", 2, "--queries", 2, "--neighbours", 2, "--classes", 2, "--device", "cpu")


def test_the_command(command, trained, tmp_path):
    status, out, _ = command(trained, "--out", tmp_path / "p", *SMALL)
    assert status == 0
    heading, columns, *rows, last = out.splitlines()
    assert heading == "120 images of 6 classes of test"
    assert columns.split() == ["features", "pixels"]
    assert [row.split("  ")[1] for row in rows] == [
        "silhouette",
        "nearest class mean",
        "nearest image",
    ]
    assert last == f"in {tmp_path / 'p'}: {', '.join(FILES)}"


def test_the_command_as_json(command, trained, tmp_path):
    _, out, _ = command(trained, "--out", tmp_path / "p", *SMALL, "--json", "--split-b", "val")
    found = json.loads(out)
    assert found["split"] == "val"
    assert found["representation"].keys() == found["pixels"].keys()
    assert [name.rpartition("/")[2] for name in found["files"]] == FILES


def test_a_refusal_is_one_line(command, tmp_path):
    status, out, err = command(tmp_path / "nowhere", "--out", tmp_path / "p")
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'nowhere'}: no run here")


@pytest.mark.slow
@pytest.mark.skipif(browser.find_browser() is None, reason="no Chromium is installed")
def test_the_page_in_a_browser(looked, tmp_path):
    out, _ = looked
    with browser.open_browser(tmp_path / "profile") as page:
        page.open((out / "map.html").as_uri())
        page.wait_for("document.body.dataset.ready")
        assert page.evaluate("performance.getEntriesByType('resource').length") <= 1
        names = page.evaluate("[...find('legend').children].map((one) => one.textContent)")
        assert [name[1:].startswith("test-") for name in names] == [True] * 3
        x, y = page.evaluate(
            "(() => { const box = canvas.getBoundingClientRect(), [x, y] = place(map.points[7]);"
            " return [x + box.left, y + box.top] })()"
        )
        page.point(x, y)
        page.wait_for("tip.style.display === 'block'")
        wanted = page.evaluate("data.names[data.labels[hovered]]")
        assert page.evaluate("tip.textContent") == wanted
        assert page.evaluate("find('neighbours').children.length") == 6
        page.screenshot(tmp_path / "hover.png")
        before = page.evaluate("view.scale")
        page.wheel(x, y, -400)
        page.wait_for(f"view.scale > 1.5 * {before}")
        page.evaluate("find('maps').children[1].click()")
        assert page.evaluate("map.name") == "PCA"
        assert "component 1" in page.evaluate("find('axes').textContent")
        page.evaluate("find('legend').children[0].click()")
        assert page.evaluate("picked") == 0
        page.screenshot(tmp_path / "picked.png")
    for name in ("hover.png", "picked.png"):
        with Image.open(tmp_path / name) as shown:
            assert len(shown.getcolors(maxcolors=1 << 22)) > 50  # not a blank page
