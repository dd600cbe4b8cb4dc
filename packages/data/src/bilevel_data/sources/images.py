"""Reading a picture that somebody else made."""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from itertools import islice

from PIL import Image, ImageOps

from bilevel_data.contracts import Images
from bilevel_data.errors import DataError

__all__ = ["SUFFIXES", "centre_square", "check_shape", "convert", "read_picture", "read_pictures"]

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp")
_MAX_PIXELS = 64_000_000
_AT_ONCE, _MAX_THREADS = 32, 4


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
    with _strict():
        return _decode(content, name, channels, _FORMATS)


def read_pictures(
    files: Iterable[tuple[str, bytes]],
    finish: Callable[[Image.Image], Images],
    *,
    channels: int,
    formats: tuple[str, ...] = _FORMATS,
) -> Iterator[Images]:
    """Decode pictures as `read_picture` does, several at once: decoders let go of Python's lock.

    Args:
        files: The name of each, to call it in an error, and its bytes; 32 are held at a time.
        finish: What to make of each picture, called in one of at most four threads.
        channels: 1 for grey, 3 for colour.
        formats: Which of the five formats to accept.

    Raises:
        DataError: As `read_picture`.
    """
    files = iter(files)

    def work(file: tuple[str, bytes]) -> Images:
        return finish(_decode(file[1], file[0], channels, formats))

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        while batch := list(islice(files, _AT_ONCE)):
            with _strict():
                pictures = list(pool.map(work, batch))
            yield from pictures


@contextmanager
def _strict() -> Iterator[None]:
    # Pillow only warns of some bombs and damages. Filters belong to the process and not to a
    # thread, so this surrounds the threads and is never entered by them.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _decode(content: bytes, name: str, channels: int, formats: tuple[str, ...]) -> Image.Image:
    try:
        picture = Image.open(BytesIO(content), formats=formats)
        return convert(picture, name, channels=channels)
    except DataError:
        raise
    except Exception as err:  # decoders raise of many kinds on damaged files
        reason = " ".join(str(err).split())[:100]
        msg = f"{name}: expected a picture ({', '.join(formats)}), cannot read it: {reason}"
        raise DataError(msg) from None


def convert(picture: Image.Image, name: str, *, channels: int) -> Image.Image:
    """An opened picture, upright, as 8-bit grey or colour; see-through parts become white.

    Raises:
        DataError: Over 64 megapixels, or of more than 8 bits a channel.
    """
    width, height = picture.size
    _check(name, picture.mode, width * height)  # before any pixel is decoded
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        layer = picture.convert("RGBA")
        paper = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(paper, layer)
    return picture.convert("L" if channels == 1 else "RGB")


def check_shape(source: str, size: object, channels: object) -> None:
    """Refuse sizes that are not whole numbers in 1 … 1024 and channels that are not 1 or 3.

    Raises:
        DataError: One of them is refused; the message begins with ``source``.
    """
    if type(size) is not int or not 1 <= size <= 1024:
        raise DataError(f"{source}: size: expected a whole number in 1 … 1024, found {size!r}")
    if type(channels) is not int or channels not in (1, 3):
        raise DataError(f"{source}: channels: expected 1 or 3, found {channels!r}")


def _check(name: str, mode: str, pixels: int) -> None:
    if pixels > _MAX_PIXELS:
        raise DataError(f"{name}: {pixels} pixels, more than {_MAX_PIXELS}: make it smaller")
    if mode.startswith(("I", "F")):
        raise DataError(f"{name}: more than 8 bits a channel: save it as an 8-bit picture")


def centre_square(picture: Image.Image, size: int) -> Image.Image:
    """The largest square in the middle, resized with Lanczos to ``(size, size)`` pixels."""
    side = min(picture.size)
    left, top = ((length - side) // 2 for length in picture.size)
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)
