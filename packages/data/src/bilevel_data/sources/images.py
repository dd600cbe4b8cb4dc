"""Reading a picture that somebody else made."""

import warnings
from io import BytesIO

from PIL import Image, ImageOps

from bilevel_data.errors import DataError

__all__ = ["SUFFIXES", "centre_square", "read_picture"]

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_MAX_PIXELS = 64_000_000


def read_picture(content: bytes, name: str, *, channels: int) -> Image.Image:
    """Decode a picture, upright, as 8-bit grey or colour; see-through parts become white.

    Args:
        content: The bytes of a PNG, JPEG, BMP, GIF (first frame) or WebP file.
        name: What to call it in an error.
        channels: 1 for grey, 3 for colour.

    Raises:
        DataError: Not a picture of these formats, damaged, over 64 megapixels, or of more than
            8 bits a channel.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # Pillow only warns of some bombs and damages
            picture = Image.open(BytesIO(content), formats=_FORMATS)
            width, height = picture.size
            _check(name, picture.mode, width * height)  # before any pixel is decoded
            return _convert(picture, channels)
    except DataError:
        raise
    except Exception as err:  # decoders raise of many kinds on damaged files
        reason = " ".join(str(err).split())[:100]
        msg = f"{name}: expected a picture ({', '.join(_FORMATS)}), cannot read it: {reason}"
        raise DataError(msg) from None


def _check(name: str, mode: str, pixels: int) -> None:
    if pixels > _MAX_PIXELS:
        raise DataError(f"{name}: {pixels} pixels, more than {_MAX_PIXELS}: make it smaller")
    if mode.startswith(("I", "F")):
        raise DataError(f"{name}: more than 8 bits a channel: save it as an 8-bit picture")


def _convert(picture: Image.Image, channels: int) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(paper, layer)
    return picture.convert("L" if channels == 1 else "RGB")


def centre_square(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, resized with Lanczos to ``(size, size)`` pixels."""
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)
