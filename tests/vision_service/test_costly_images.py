"""Malicious images are rejected before they cost much."""

import struct
import time

import numpy as np
import pytest
from PIL import Image

from chassis.settings import load_settings
from tests.vision_service.image_samples import LIMITS, gradient, png_chunk, png_of_one_colour, rejection, saved
from vision_service.image_reader import PILLOW_MAX_PIXELS, read_image
from vision_service.service import VisionSettings

pytestmark = pytest.mark.filterwarnings(
    "ignore::PIL.Image.DecompressionBombWarning"
)  # pytest resets the filter of image_reader

EMPTY_SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"


def test_a_decompression_bomb_is_rejected_by_its_header() -> None:
    """100 KB claim 900 million pixels, a gigabyte once decoded."""
    data = png_of_one_colour(30_000, 30_000)
    assert len(data) < 2**20
    started = time.thread_time()
    error = rejection(data)
    assert time.thread_time() - started < 0.5
    assert error.reason == "IMAGE_TOO_MANY_PIXELS"


def test_each_side_is_limited() -> None:
    """Resizing takes 32 bytes per pixel of the longer side.

    A line of 25 million pixels would take a gigabyte.
    """
    assert read_image(png_of_one_colour(65_535, 2), LIMITS).size == (65_535, 2)
    for size in ((65_536, 2), (2, 25_000_000)):
        assert rejection(png_of_one_colour(*size)).reason == "IMAGE_TOO_MANY_PIXELS"


def test_the_pixel_limit_cannot_exceed_that_of_pillow(capsys: pytest.CaptureFixture[str]) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == PILLOW_MAX_PIXELS
    flags = ["--models", "models", "--max-image-pixels"]
    assert load_settings(VisionSettings, [*flags, str(PILLOW_MAX_PIXELS)]).max_image_pixels == PILLOW_MAX_PIXELS
    with pytest.raises(SystemExit):
        load_settings(VisionSettings, [*flags, str(PILLOW_MAX_PIXELS + 1)])
    assert "--max-image-pixels" in capsys.readouterr().err


def test_a_jpeg_with_too_many_scans_is_rejected() -> None:
    """Each scan of ten bytes walks over all pixels.

    A file of 20 MB would take hours.
    """
    data = saved(gradient(), "JPEG", progressive=True)
    assert data.endswith(b"\xff\xd9")
    assert read_image(data[:-2] + 20 * EMPTY_SCAN + data[-2:], LIMITS).size == gradient().size
    # Bytes between the scans that look like the end of the image, or like data.
    for between in (b"", b"\xff\xfe\x00\x04\xff\xd9", b"\xff\xff"):
        assert rejection(data[:-2] + 500 * (between + EMPTY_SCAN) + data[-2:]).reason == "IMAGE_UNSUPPORTED"
    no_segment = b"\xff\x02\xff\xff"  # decoders that look for a restart marker skip these two bytes only
    assert rejection(data[:-2] + no_segment + 500 * EMPTY_SCAN + data[-2:]).reason == "IMAGE_UNSUPPORTED"
    hidden = 1_000_000 * b"\xff\xfe\x00\x02" + 500 * EMPTY_SCAN  # counting all of it would take half a second
    started = time.thread_time()
    assert rejection(data[:-2] + hidden + data[-2:]).reason == "IMAGE_UNSUPPORTED"
    assert time.thread_time() - started < 0.3


def test_bytes_that_only_look_like_scans_are_accepted() -> None:
    """Segments contain thumbnails, and phones append videos to photos."""
    data = saved(gradient(), "JPEG", progressive=True)
    thumbnail = 500 * EMPTY_SCAN
    segment = b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    read = read_image(data[:2] + segment + data[2:] + 500 * EMPTY_SCAN, LIMITS)
    assert read.tobytes() == read_image(data, LIMITS).tobytes()


def test_an_image_with_too_many_pieces_costs_little() -> None:
    """A decoder takes ten seconds for 20 MB of them."""
    png, jpeg = saved(gradient(), "PNG"), saved(gradient(), "JPEG")
    head, rest = png[: 8 + 25], png[8 + 25 :]
    for data in (
        head + 1_500_000 * png_chunk(b"teSt", b"") + rest,
        png[:-12] + 1_500_000 * png_chunk(b"teSt", b"") + png[-12:],
        jpeg[:2] + 4_000_000 * b"\xff\xfe\x00\x02" + jpeg[2:],
    ):
        started = time.thread_time()
        error = rejection(data)
        assert (error.reason, "too many small pieces" in error.message) == ("IMAGE_UNSUPPORTED", True)
        assert time.thread_time() - started < 0.5
    started = time.thread_time()
    assert read_image(jpeg[:2] + 18_000_000 * b"\xff" + jpeg[2:], LIMITS).size == gradient().size
    assert time.thread_time() - started < 1.0  # 0.4 to 0.6 on a slow processor


def test_a_photo_of_fifty_megapixels_is_taken() -> None:
    assert read_image(saved(Image.new("L", (8160, 6144)), "JPEG"), LIMITS).size == (8160, 6144)


def run_length_bmp(width: int, height: int) -> bytes:
    """Return a black BMP with a grey first column."""
    greys = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    rows = b"\x01\x80\x00\x00" * height + b"\x00\x01"
    start = 14 + 40 + len(greys)
    header = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0) + greys + rows


def test_a_run_length_encoded_bmp_is_read_only_if_small() -> None:
    """Pillow decodes it in Python.

    30 KB that claimed 49 million pixels blocked the interpreter for six seconds.
    """
    read = np.asarray(read_image(run_length_bmp(60, 40), LIMITS))
    assert (read[:, 0] == 128).all()
    assert not read[:, 1:].any()
    started = time.thread_time()
    assert rejection(run_length_bmp(7000, 7000)).reason == "IMAGE_TOO_MANY_PIXELS"
    assert time.thread_time() - started < 0.5


def test_false_sizes_in_headers_are_rejected() -> None:
    """Some are at the limit of Pillow, some beyond it."""
    gif = bytearray(saved(gradient(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(saved(gradient(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    webp = bytearray(saved(gradient(), "WEBP", save_all=True, append_images=[gradient().rotate(180)]))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = b"\xff\x3f\x00\xff\x3f\x00"
    for data in (png_of_one_colour(10_000, 10_000), bytes(gif), bytes(bmp), bytes(webp)):
        started = time.thread_time()
        assert rejection(data).reason in ("IMAGE_TOO_MANY_PIXELS", "IMAGE_TRUNCATED", "IMAGE_UNSUPPORTED")
        assert time.thread_time() - started < 0.5
