"""Characters of many scripts, drawn from the fonts that matplotlib installs.

A stand-in for handwritten characters that needs no download: every character is drawn once, large,
and then bent into twenty drawings. Whole scripts are held out, so that nothing in the validation
and test splits has a relative among the training characters.
"""

from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageFont

from bilevel_data.dataset import SPLIT_NAMES, Images, Lazy, SourceData, SourceSplit
from bilevel_data.errors import DataError
from bilevel_data.preprocessing import Preprocessing
from bilevel_data.sources.glyphs.characters import SCRIPTS, Script
from bilevel_data.sources.glyphs.handwriting import SIDE, handwrite

__all__ = ["draw", "font_folder", "glyphs"]

_DRAWINGS = 20
_CANVAS, _LONG_SIDE, _BLUR = 84, 57, 1.8
_FONT_SIZE = 96


def glyphs() -> SourceData:
    """1,207 characters of 19 scripts, 20 drawings of each: 28×28 grey, ink 255, paper 0.

    Raises:
        DataError: matplotlib or one of its fonts is missing.
    """
    fonts = font_folder()
    for font in sorted({script.font for script in SCRIPTS}):
        if not (fonts / f"{font}.ttf").is_file():
            msg = f"{fonts / font}.ttf: missing: install matplotlib from its own wheel"
            raise DataError(msg)
    return SourceData(
        name="glyphs",
        licence="derived from the DejaVu and STIX fonts: Bitstream Vera, public domain and "
        "SIL Open Font License 1.1",
        source="characters of DejaVu Sans and STIX General as installed by matplotlib",
        preprocessing=Preprocessing(
            size=(SIDE, SIDE),
            channels=1,
            inverted=True,
            ink="bright",
            note="20 drawings a character, turned, sheared, scaled, moved, bent and of different "
            "stroke widths",
        ),
        rotations_are_classes=True,
        splits=tuple(_split(name, fonts) for name in SPLIT_NAMES),
    )


def font_folder() -> Path:
    """The folder with matplotlib's fonts.

    Raises:
        DataError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        msg = "glyphs: needs the fonts that matplotlib installs: install bilevel-data[glyphs]"
        raise DataError(msg) from None
    return Path(mpl.get_data_path()) / "fonts" / "ttf"


def draw(font: ImageFont.FreeTypeFont, character: str) -> NDArray[np.float32]:
    """One character, centred, `(84, 84)` in [0, 1], blurred as `handwrite` expects it."""
    mask = font.getmask(character, mode="L")
    glyph = Image.frombytes("L", mask.size, bytes(mask))
    glyph = glyph.crop(glyph.getbbox())
    scale = _LONG_SIDE / max(glyph.size)
    width, height = (max(1, round(length * scale)) for length in glyph.size)
    glyph = glyph.resize((width, height), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (_CANVAS, _CANVAS))
    canvas.paste(glyph, ((_CANVAS - width) // 2, (_CANVAS - height) // 2))
    blurred = canvas.filter(ImageFilter.GaussianBlur(_BLUR))
    # A hairline is faint once it is blurred and would vanish from some drawings: divided by the
    # brightest point near by, each stroke is 1 along its middle.
    ink = np.asarray(blurred, dtype=np.float32)
    peak = np.asarray(blurred.filter(ImageFilter.MaxFilter(9)), dtype=np.float32)
    return (ink / np.maximum(peak, 48)).astype(np.float32)


def _split(name: str, fonts: Path) -> SourceSplit:
    scripts = tuple(script for script in SCRIPTS if script.split == name)
    names = tuple(_class_name(script, c) for script in scripts for c in script.characters)
    return SourceSplit(
        name=name,
        class_names=names,
        class_sizes=(_DRAWINGS,) * len(names),
        image_shape=(SIDE, SIDE, 1),
        images=Lazy(make=partial(_images, scripts, fonts)),
    )


def _class_name(script: Script, character: str) -> str:
    return f"{script.name}/U+{ord(character):04X}"


def _images(scripts: tuple[Script, ...], fonts: Path) -> Iterator[Images]:
    for script in scripts:
        font = _font(fonts / f"{script.font}.ttf")
        for character in script.characters:
            key = f"bilevel-data glyphs 1 {_class_name(script, character)}"
            yield handwrite(draw(font, character), _DRAWINGS, key)


@cache
def _font(path: Path) -> ImageFont.FreeTypeFont:
    # Pillow's own layout, as an optional library would shape some scripts otherwise.
    return ImageFont.truetype(path, _FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
