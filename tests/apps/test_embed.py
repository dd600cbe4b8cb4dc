"""The pairs of Figure 5: exact, and drawn."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from bilevel_apps.embed import Embedded, EmbedRequest, embed_run, extreme_pairs
from bilevel_apps.errors import InputError


def embedded(n, seed, near=0.0):
    generator = torch.Generator().manual_seed(seed)
    features = 1 + near * torch.rand(n, 6, generator=generator)
    return Embedded(
        pixels=np.arange(n, dtype=np.uint8).reshape(n, 1, 1, 1),  # an image that tells its number
        features=features if near else torch.rand(n, 6, generator=generator),
        labels=np.arange(n),
    )


def numbers(pair):
    return tuple(int(image.item()) for image in pair.images)


@pytest.mark.parametrize("near", [0.0, 1e-6], ids=["spread", "almost equal"])
def test_the_first_pairs_are_those_of_a_brute_force_search(near):
    a, b = embedded(7, 0, near), embedded(9, 1, near)
    differences = a.features.double()[:, None] - b.features.double()[None]
    distances = differences.square().sum(-1).sqrt().numpy()
    nearest, farthest = extreme_pairs(a, b, 3)
    assert numbers(nearest[0]) == np.unravel_index(distances.argmin(), distances.shape)
    assert numbers(farthest[0]) == np.unravel_index(distances.argmax(), distances.shape)
    for pair in nearest + farthest:
        assert pair.distance == pytest.approx(distances[numbers(pair)], rel=1e-12)


def test_pairs_come_in_order_and_no_image_comes_twice():
    nearest, farthest = extreme_pairs(embedded(6, 2), embedded(5, 3), 9)
    for pairs, sign in ((nearest, 1), (farthest, -1)):
        assert len(pairs) == 5
        ordered = [sign * pair.distance for pair in pairs]
        assert ordered == sorted(ordered)
        for images in zip(*map(numbers, pairs), strict=True):
            assert len(set(images)) == 5


def test_no_pair_of_classes_comes_twice():
    a, b = embedded(8, 4), embedded(8, 5)
    two = np.arange(8) % 2
    a, b = (dataclasses.replace(one, labels=two) for one in (a, b))
    for pairs in extreme_pairs(a, b, 8):
        classes = [tuple(number % 2 for number in numbers(pair)) for pair in pairs]
        assert sorted(classes) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def test_the_picture_of_a_run(trained, tmp_path):
    picture = embed_run(trained, tmp_path / "new" / "folder", EmbedRequest(pairs=3))
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
        # White paper, the frames' two colours, and ink.
        colours = {colour for _, colour in image.convert("RGB").getcolors(maxcolors=1 << 20)}
        assert {(255, 255, 255), (0, 0x55, 0xA4), (0x7B, 0xC0, 0x43)} <= colours


def test_the_picture_is_the_same_twice(trained, tmp_path):
    first, second = (
        embed_run(trained, tmp_path / name, EmbedRequest(pairs=2, seed=4)) for name in "ab"
    )
    assert first.read_bytes() == second.read_bytes()


def test_refusals_write_nothing(trained, tmp_path, make_store):
    out = tmp_path / "pictures"
    with pytest.raises(InputError, match="no split 'nowhere': choose one that it has: train"):
        embed_run(trained, out, EmbedRequest(split_b="nowhere"))
    larger = make_store(size=20)
    with pytest.raises(
        InputError, match=r"\(20, 20, 1\), but the run was trained on \(16, 16, 1\)"
    ):
        embed_run(trained, out, EmbedRequest(data=larger))
    assert not out.exists()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="cannot write here"):
        embed_run(trained, blocked / "below", EmbedRequest())
