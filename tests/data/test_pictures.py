"""What of a picture is taken, refused, and how much of it is in memory."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from bilevel_data import DataError
from bilevel_data.files.limits import LIMITS, MAX_PICTURE_BYTES
from bilevel_data.files.regular_file import read_plain
from bilevel_data.sources import decode as images_module
from bilevel_data.sources.decode import convert, read_picture, read_pictures


def saved(picture, form="PNG", **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def picture(mode, size=(9, 7), seed=0):
    rng = np.random.default_rng(seed)
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = rng.integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode == "P":
        found = Image.fromarray(np.repeat(pixels, 3, axis=2)).quantize(16)
        found.info["transparency"] = 3
        return found
    if mode == "1":
        return Image.fromarray(pixels[..., 0]).convert("1")
    return Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)


def at_once(found, mode):
    """What a picture should become, with all of it in memory."""
    if found.has_transparency_data:
        layer = found.convert("RGBA")
        found = Image.alpha_composite(Image.new("RGBA", layer.size, (255,) * 4), layer)
    return np.asarray(found.convert(mode))


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "1"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("band", [1, 20, 1000])
def test_bands_of_rows_give_the_whole_picture(monkeypatch, mode, channels, band):
    monkeypatch.setattr(images_module, "_BAND", band)
    found = picture(mode)
    converted = convert(found.copy(), "p", channels=channels)
    np.testing.assert_array_equal(np.asarray(converted), at_once(found, converted.mode))
    assert converted.mode == ("L" if channels == 1 else "RGB")


def test_large_pictures_are_made_one_at_a_time(monkeypatch):
    monkeypatch.setattr(images_module, "_LARGE", 10)
    content = saved(picture("RGB"))
    files = [(str(k), content) for k in range(5)]
    found = list(read_pictures(files, np.asarray, channels=3))
    for array in found:
        np.testing.assert_array_equal(array, np.asarray(picture("RGB")))


def test_upright():
    found = picture("L")
    tags = Image.Exif()
    tags[0x0112] = 6
    content = saved(found, "PNG", exif=tags)
    upright = read_picture(content, "p", channels=1)
    np.testing.assert_array_equal(np.asarray(upright), np.rot90(np.asarray(found), -1))


def saved_rgb48():
    """A PNG of 16 bits for each of three colours, which Pillow does not write."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(2 * (1 + 12))))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


FRAMES = [Image.new("RGB", (4, 4), (60 * k, 0, 0)) for k in range(3)]
REFUSED = {
    "animated GIF": (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "animation"),
    "animated PNG": (saved(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "animation"),
    "animated WebP": (
        saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]),
        "animation",
    ),
    "CMYK": (saved(Image.new("CMYK", (4, 4)), "JPEG"), "colours in CMYK: save it in RGB"),
    "16 bits of colour": (saved_rgb48(), "more than 8 bits a channel"),
    "pages": (saved(FRAMES[0], "TIFF", save_all=True, append_images=FRAMES[1:]), "animation"),
    "no number": (saved(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"), "finite"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "cannot read it.*replace or remove"),
}


DEEP = np.array([[100, 150], [200, 300]])


@pytest.mark.parametrize(
    "content",
    [
        saved(Image.fromarray(DEEP.astype(np.uint16))),
        saved(Image.fromarray(DEEP.astype(np.uint16)), "TIFF"),
        saved(Image.fromarray(DEEP.astype(np.int32)), "TIFF"),
        saved(Image.fromarray(DEEP.astype(np.float32) / 7), "TIFF"),
        saved(Image.fromarray(DEEP.astype(np.uint16)), "TIFF", compression="tiff_deflate"),
    ],
    ids=["PNG", "TIFF", "32 bits", "floats", "packed"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_greys_of_more_bits_are_scaled_by_their_range(content, channels):
    found = np.asarray(read_picture(content, "p", channels=channels))
    expected = np.rint((DEEP - 100) * 255 / 200).astype(np.uint8)
    np.testing.assert_array_equal(found.reshape(2, 2, -1)[..., -1], expected)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiff_whose_least_value_is_white(kind):
    values = np.array([[0, 255], [100, 200]]).astype(kind)
    content = bytearray(saved(Image.fromarray(values), "TIFF"))
    at = content.index(struct.pack("<HHI", 262, 3, 1)) + 8
    content[at] = 0
    found = np.asarray(read_picture(bytes(content), "p", channels=1))
    np.testing.assert_array_equal(found, 255 - values)


def test_a_deep_grey_of_one_value_is_black():
    content = saved(Image.new("I;16", (4, 4), 700))
    assert not np.asarray(read_picture(content, "p", channels=1)).any()


def test_a_tiff_in_colour():
    found = picture("RGB")
    for form in ({}, {"compression": "tiff_lzw"}):
        read = read_picture(saved(found, "TIFF", **form), "p", channels=3)
        np.testing.assert_array_equal(np.asarray(read), np.asarray(found))


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    content, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        read_picture(content, "p", channels=3)


def test_photographs_with_a_second_one_beside_them():
    """As telephones write them: one picture, and a map of its depth in the same file."""
    found = picture("L")
    content = saved(found, "MPO", save_all=True, append_images=[found], quality=95)
    assert read_picture(content, "p", channels=1).size == found.size


def test_limits(monkeypatch, tmp_path):
    content = saved(picture("RGB"))
    monkeypatch.setenv("BILEVEL_MAX_PIXELS", "62")
    with pytest.raises(DataError, match=r"p: 63 pixels, more than 62: make .* BILEVEL_MAX_PIXELS"):
        read_picture(content, "p", channels=3)
    monkeypatch.setenv("BILEVEL_MAX_PIXELS", "63")
    assert read_picture(content, "p", channels=3).size == (9, 7)
    # Pillow's own limit does not stand in the way of a larger one.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_picture(content, "p", channels=3).size == (9, 7)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert len({limit.variable for limit in LIMITS}) == len(LIMITS)


END = b"\xff\xd9"


def jpeg_of(scans):
    """A progressive picture whose last scan is there so often that it has as many in all."""
    content = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(content, "JPEG", progressive=True)
    start, *data = content.getvalue().removesuffix(END).split(b"\xff\xda")
    return b"\xff\xda".join([start, *data, *[data[-1]] * (scans - len(data))]) + END


def test_scans_of_a_jpeg():
    """Each is a pass over all pixels: a small file could ask for hours."""
    assert read_picture(jpeg_of(50), "p", channels=1).size == (64, 64)
    with pytest.raises(DataError, match="p: a JPEG of more than 50 scans: save it again"):
        read_picture(jpeg_of(51), "p", channels=1)
    # What stands in a comment, or after the end, is no scan.
    comment = b"\xff\xda" * 100
    content = jpeg_of(20)
    size = (len(comment) + 2).to_bytes(2, "big")
    commented = content[:2] + b"\xff\xfe" + size + comment + content[2:] + comment
    assert read_picture(commented, "p", channels=1).size == (64, 64)


def test_segments_of_a_jpeg():
    content = jpeg_of(20)
    many = content[:2] + b"\xff\xfe\x00\x02" * 10_001 + content[2:]
    with pytest.raises(DataError, match="p: a JPEG of more than 50 scans"):
        read_picture(many, "p", channels=1)


def test_plain_files(monkeypatch, tmp_path):
    def read(path):
        return read_plain(path, MAX_PICTURE_BYTES, what="a picture", remedy="give another")

    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read(path) == b"12345"
    monkeypatch.setenv("BILEVEL_MAX_PICTURE_BYTES", "4")
    with pytest.raises(DataError, match=r"file: 5 bytes of a picture, more than 4: give another"):
        read(path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    for other in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DataError, match="not a plain file: give another"):
            read(other)
    with pytest.raises(DataError, match=r"cannot read a picture \(File name too long\)"):
        read(tmp_path / ("x" * 300))
