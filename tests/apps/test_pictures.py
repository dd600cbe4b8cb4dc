"""What all drawings share: colours that everybody can tell apart, dark ink on light paper."""

from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
from PIL import Image

from bilevel_apps.drawing.style import (
    BLUE,
    CLASS_COLOURS,
    GREEN,
    INK,
    VERMILLION,
    new_figure,
    png_of,
    readable,
    show_image,
    text_on,
)

# A physiologically-based model for simulation of color vision deficiency (Machado et al., 2009),
# table 1 at severity 1: linear RGB as people without one kind of cones see it.
EYES = {
    "all cones": np.eye(3),
    "no L cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no M cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def linear(colour):
    rgb = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """CIELAB of linear sRGB."""
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    t = np.array(to_xyz) @ np.clip(rgb, 0, 1) / np.array([0.9505, 1, 1.089])
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(a, b, eyes):
    """The CIE76 difference; 2.3 is just noticeable."""
    seen = [lab(np.array(EYES[eyes]) @ linear(colour)) for colour in (a, b)]
    return float(np.linalg.norm(seen[0] - seen[1]))


@pytest.mark.parametrize("eyes", EYES)
def test_colours_can_be_told_apart(eyes):
    for a, b in combinations(CLASS_COLOURS, 2):
        assert apart(a, b, eyes) > 12, (a, b)
    assert apart(BLUE, GREEN, eyes) > 25
    assert apart(GREEN, VERMILLION, eyes) > 12


def test_the_measure_sees_what_is_hard_to_see():
    assert apart("#ff0000", "#00a000", "all cones") > 100
    assert apart("#a05000", "#608000", "no M cones") < 12


@pytest.mark.parametrize("colour", CLASS_COLOURS)
def test_text_can_be_read_on_every_colour(colour):
    luminances = [
        (np.array([0.2126, 0.7152, 0.0722]) @ linear(c))
        for c in ("#ffffff" if text_on(colour) == "white" else INK, colour)
    ]
    # WCAG 2: large or bold text needs a contrast of 3.
    assert (max(luminances) + 0.05) / (min(luminances) + 0.05) > 3


def test_ink_is_dark_and_photographs_stay():
    grey, colour = np.full((2, 2, 1), 255, np.uint8), np.full((2, 2, 3), 200, np.uint8)
    assert (readable(grey) == 0).all()
    assert (readable(colour) == 200).all()


def drawn(pixels):
    figure = new_figure(1, 1)
    axes = figure.add_axes((0, 0, 1, 1))
    show_image(axes, pixels, 0.25, 0.25, 0.5, {"edgecolor": BLUE, "linewidth": 2})
    axes.set(xlim=(0, 1), ylim=(1, 0))
    axes.set_axis_off()
    return png_of(figure, 80)


def test_an_image_stands_upright_where_it_was_put():
    pixels = np.zeros((2, 2, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)  # the upper left corner
    with Image.open(BytesIO(drawn(pixels))) as image:
        assert image.size == (80, 80)
        assert image.info["dpi"][0] == pytest.approx(80, abs=0.1)
        shown = image.convert("RGB")
    assert shown.getpixel((30, 30)) == (255, 0, 0)
    assert shown.getpixel((50, 50)) == (0, 0, 0)
    assert shown.getpixel((20, 40)) == (0x00, 0x72, 0xB2)
    assert shown.getpixel((10, 40)) == (255, 255, 255)


def test_the_same_figure_gives_the_same_bytes():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    assert drawn(pixels) == drawn(pixels)
