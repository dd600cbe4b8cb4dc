"""Reading a picture that somebody else made."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import TypeVar, final

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from bilevel_data.dataset import Images
from bilevel_data.errors import DataError
from bilevel_data.files.limits import MAX_PICTURE_BYTES, MAX_PIXELS
from bilevel_data.files.regular_file import read_plain

__all__ = [
    "Header",
    "check_shape",
    "convert",
    "picture_bytes",
    "picture_headers",
    "read_picture",
    "read_pictures",
    "unreadable",
]

Made = TypeVar("Made")

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
_AT_ONCE, _MAX_THREADS = 32, 4
# Larger pictures are made one at a time, and converted in bands of rows, to hold less at once.
_LARGE, _BAND = 8_000_000, 4_000_000
_GREY = ("1", "L", "LA", "I", "F")
_REMEDY = "replace or remove it"
_COLOURS = ("CMYK", "LAB", "HSV", "YCbCr")  # other than these have one meaning
_ORIENTATION, _PHOTOMETRIC = 0x0112, 0x0106
_MOST_SCANS, _MOST_SEGMENTS = 50, 10_000
# What begins a segment of a JPEG file, or ends it: no byte of a scan's data is one of these.
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")


def read_picture(content: bytes, name: str, *, channels: int) -> Image.Image:
    """Decode a picture, upright, as 8-bit grey or colour; see-through parts become white.

    Greys of more than 8 bits, as scanners and microscopes make them, are scaled by their range:
    the darkest becomes 0, the brightest 255.

    Args:
        content: the bytes of a PNG, JPEG, BMP, GIF, WebP or TIFF file.
        name: what to call it in an error.
        channels: 1 for grey, 3 for colour.

    Raises:
        DataError: not a picture of these formats, damaged, of more than `MAX_PIXELS`, an animation,
            or in colours other than RGB or of more than 8 bits a channel.
    """
    with _strict():
        return _decode(content, name, channels, _FORMATS, lambda picture: picture, nullcontext())


def read_pictures(
    files: Iterable[tuple[str, bytes]],
    finish: Callable[[Image.Image], Images],
    *,
    channels: int,
    formats: tuple[str, ...] = _FORMATS,
) -> Iterator[Images]:
    """Decode pictures as `read_picture` does, several at once: decoders let go of Python's lock.

    Args:
        files: the name of each, to call it in an error, and its bytes; 32 are held at a time.
        finish: what to make of each picture, called in one of at most four threads.
        channels: 1 for grey, 3 for colour.
        formats: which of the six formats to accept.

    Raises:
        DataError: as `read_picture`.
    """
    files = iter(files)

    alone = Lock()

    def work(file: tuple[str, bytes]) -> Images:
        return _decode(file[1], file[0], channels, formats, finish, alone)

    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        while batch := list(islice(files, _AT_ONCE)):
            with _strict():
                pictures = list(pool.map(work, batch))
            yield from pictures


def picture_bytes(file: Path) -> bytes:
    """What is in the file of a picture.

    Raises:
        DataError: there is none, it cannot be read, is not a plain file, or is too large.
    """
    try:
        return read_plain(file, MAX_PICTURE_BYTES, what="a picture", remedy=_REMEDY)
    except FileNotFoundError:
        raise DataError(f"{file}: cannot read this picture (it has gone): restore it") from None


@final
@dataclass(frozen=True, kw_only=True)
class Header:
    """What a picture's file says before any pixel is decoded: `(width, height)`, and if grey."""

    size: tuple[int, int]
    grey: bool


def picture_headers(files: Sequence[Path]) -> list[Header | None]:
    """What the files of pictures say of them; None for what is no picture."""
    with _strict(), ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return list(pool.map(_header, files))


def _header(file: Path) -> Header | None:
    try:
        with Image.open(file, formats=_FORMATS) as picture:
            return Header(size=picture.size, grey=picture.mode.split(";")[0] in _GREY)
    except Exception:  # decoders raise of many kinds, and the whole picture is refused later
        return None


def unreadable(files: Sequence[Path]) -> list[Path]:
    """Those of several pictures that `read_picture` refuses.

    Cost: all of them are decoded.
    """
    alone = Lock()

    def fits(file: Path) -> bool:
        try:
            _decode(picture_bytes(file), str(file), 3, _FORMATS, _none, alone)
        except DataError:
            return False
        return True

    with _strict(), ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        return [file for file, good in zip(files, pool.map(fits, files), strict=True) if not good]


def _none(_picture: Image.Image) -> None:
    return None


@contextmanager
def _strict() -> Iterator[None]:
    # Pillow only warns of some bombs and damages. Filters belong to the process and not to a
    # thread, so this surrounds the threads and is never entered by them.
    # Pillow's own limit gives way to ours, which is checked before any pixel is decoded.
    most, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = most


def _decode(
    content: bytes,
    name: str,
    channels: int,
    formats: tuple[str, ...],
    finish: Callable[[Image.Image], Made],
    alone: AbstractContextManager[object],
) -> Made:
    try:
        picture = Image.open(BytesIO(content), formats=formats)
        _check_file(name, picture, content)
        with alone if picture.width * picture.height > _LARGE else nullcontext():
            return finish(convert(picture, name, channels=channels))
    except DataError:
        raise
    except Exception as err:  # decoders raise of many kinds on damaged files
        reason = " ".join(str(err).split())[:100]
        msg = f"{name}: expected a picture ({', '.join(formats)}), cannot read it: {reason}"
        raise DataError(f"{msg}: replace or remove it") from None


def _check_file(name: str, picture: ImageFile, content: bytes) -> None:
    """Refuse a file that Pillow would read a part of: a first frame, or the upper 8 of 16 bits.

    And a JPEG of very many scans, each of which costs a pass over all pixels: programs write ten or
    so, and a few kilobytes would be enough for hours.
    """
    if picture.format in ("JPEG", "MPO") and _has_many_scans(content):
        raise DataError(f"{name}: a JPEG of more than {_MOST_SCANS} scans: save it again")
    # A photograph of a telephone may hold others beside it (MPO), such as a map of its depth.
    if getattr(picture, "is_animated", False) and picture.format != "MPO":
        raise DataError(f"{name}: an animation: save the one picture that is meant")
    deep = any(";16" in str(tile.args) for tile in picture.tile)
    if deep and not picture.mode.startswith("I"):
        raise DataError(f"{name}: more than 8 bits a channel: save it as an 8-bit picture")


def _has_many_scans(content: bytes) -> bool:
    """Say whether a JPEG file has more scans than any program writes, or segments without end."""
    at, scans = 2, 0
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(content, at)
        if marker is None or marker[0] == b"\xff\xd9":
            return False
        at = marker.end()
        scans += marker[0] == b"\xff\xda"
        if scans > _MOST_SCANS:
            return True
        at += int.from_bytes(content[at : at + 2], "big")
    return True


def convert(picture: Image.Image, name: str, *, channels: int) -> Image.Image:
    """An opened picture, upright, as 8-bit grey or colour; see-through parts become white.

    Raises:
        DataError: of more than `MAX_PIXELS`, or in colours other than RGB.
    """
    _check(name, picture.mode, picture.width * picture.height)  # before any pixel is decoded
    if picture.mode.startswith(("I", "F")):
        picture = _in_8_bits(picture, name)
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
    mode, see_through = "L" if channels == 1 else "RGB", picture.has_transparency_data
    if picture.mode == mode and not see_through:
        picture.load()
        return picture
    result = Image.new(mode, picture.size)
    rows = max(1, _BAND // picture.width)
    for top in range(0, picture.height, rows):
        band = picture.crop((0, top, picture.width, min(picture.height, top + rows)))
        result.paste((_on_paper(band) if see_through else band).convert(mode), (0, top))
    return result


def _on_paper(picture: Image.Image) -> Image.Image:
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer)


def check_shape(source: str, size: object, channels: object) -> None:
    """Refuse sizes that are not whole numbers in 1 … 1024 and channels that are not 1 or 3.

    Raises:
        DataError: one of them is refused; the message begins with `source`.
    """
    if type(size) is not int or not 1 <= size <= 1024:
        raise DataError(f"{source}: size: expected a whole number in 1 … 1024, found {size!r}")
    if type(channels) is not int or channels not in (1, 3):
        raise DataError(f"{source}: channels: expected 1 or 3, found {channels!r}")


def _check(name: str, mode: str, pixels: int) -> None:
    MAX_PIXELS.check(name, pixels, "make it smaller")
    if mode in _COLOURS:
        raise DataError(f"{name}: colours in {mode}: save it in RGB or grey")


def _in_8_bits(picture: Image.Image, name: str) -> Image.Image:
    """A grey picture of more bits, its own darkest at 0 and its brightest at 255."""
    values = np.asarray(picture).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise DataError(f"{name}: greys that are not finite numbers: save it again without them")
    scaled = (values - low) * (255 / max(high - low, 1e-30))
    pixels = np.rint(scaled).astype(np.uint8)
    # A TIFF may say that its least value is white, which Pillow minds in 8 bits alone.
    least_is_white = getattr(picture, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    found = Image.fromarray(255 - pixels if least_is_white else pixels)
    found.info = picture.info
    return found
