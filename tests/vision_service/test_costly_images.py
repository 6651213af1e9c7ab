"""Images made to cost more than they are: refused before the work is done, whatever their files claim."""

import struct
import time

import numpy as np
import pytest
from PIL import Image

from chassis.settings import load_settings
from tests.vision_service.image_samples import LIMITS, gradient, png_chunk, png_of_one_colour, refusal, saved
from vision_service import image_files as images
from vision_service.image_files import PILLOW_MAX_PIXELS, read_image
from vision_service.service import VisionSettings

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the module's own

EMPTY_SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00"


def test_a_bomb_is_refused_by_its_header() -> None:
    """900 million pixels in a file of about 100 KB; decoding would take a gigabyte."""
    data = png_of_one_colour(30_000, 30_000)
    assert len(data) < 2**20
    started = time.thread_time()
    error = refusal(data)
    assert time.thread_time() - started < 0.5
    assert error.reason == "IMAGE_TOO_MANY_PIXELS"


def test_a_side_is_limited_too() -> None:
    """Resizing takes 32 bytes for each pixel of the longer side: of a line of 25 million, a gigabyte."""
    assert read_image(png_of_one_colour(65_535, 2), LIMITS).size == (65_535, 2)
    for size in ((65_536, 2), (2, 25_000_000)):
        assert refusal(png_of_one_colour(*size)).reason == "IMAGE_TOO_MANY_PIXELS"


def test_no_limit_can_be_set_that_pillow_would_not_keep(capsys: pytest.CaptureFixture[str]) -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS == PILLOW_MAX_PIXELS
    flags = ["--models", "models", "--max-image-pixels"]
    assert load_settings(VisionSettings, [*flags, str(PILLOW_MAX_PIXELS)]).max_image_pixels == PILLOW_MAX_PIXELS
    with pytest.raises(SystemExit):
        load_settings(VisionSettings, [*flags, str(PILLOW_MAX_PIXELS + 1)])
    assert "--max-image-pixels" in capsys.readouterr().err


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    """Each of ten bytes costs a walk over all pixels: hours for 20 MB, by the clock of one thread."""
    data = saved(gradient(), "JPEG", progressive=True)
    assert data.endswith(b"\xff\xd9")
    assert read_image(data[:-2] + 20 * EMPTY_SCAN + data[-2:], LIMITS).size == gradient().size
    # What could pass for the image's end, or for data.
    for between in (b"", b"\xff\xfe\x00\x04\xff\xd9", b"\xff\xff"):
        assert refusal(data[:-2] + 500 * (between + EMPTY_SCAN) + data[-2:]).reason == "IMAGE_UNSUPPORTED"
    no_segment = b"\xff\x02\xff\xff"  # who looks for a restart passes over it, and over no more than its two bytes
    assert refusal(data[:-2] + no_segment + 500 * EMPTY_SCAN + data[-2:]).reason == "IMAGE_UNSUPPORTED"
    hidden = 1_000_000 * b"\xff\xfe\x00\x02" + 500 * EMPTY_SCAN  # counted for half a second
    started = time.thread_time()
    assert refusal(data[:-2] + hidden + data[-2:]).reason == "IMAGE_UNSUPPORTED"
    assert time.thread_time() - started < 0.3


def test_what_only_looks_like_scans_is_passed_over() -> None:
    """Thumbnails lie in segments, and phones append videos to their photos."""
    data = saved(gradient(), "JPEG", progressive=True)
    thumbnail = 500 * EMPTY_SCAN
    segment = b"\xff\xe1" + (2 + len(thumbnail)).to_bytes(2, "big") + thumbnail
    read = read_image(data[:2] + segment + data[2:] + 500 * EMPTY_SCAN, LIMITS)
    assert read.tobytes() == read_image(data, LIMITS).tobytes()


def test_an_image_in_too_many_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each piece is a turn of Python, held by the lock that everybody needs: ten seconds for 20 MB of them."""
    monkeypatch.setattr(images, "_MAX_READS", 10_000)
    png, jpeg = saved(gradient(), "PNG"), saved(gradient(), "JPEG")
    head, rest = png[: 8 + 25], png[8 + 25 :]
    assert read_image(head + 1000 * png_chunk(b"teSt", b"") + rest, LIMITS).size == gradient().size
    for data in (
        head + 10_000 * png_chunk(b"teSt", b"") + rest,
        png[:-12] + 10_000 * png_chunk(b"teSt", b"") + png[-12:],
        jpeg[:2] + 10_000 * b"\xff" + jpeg[2:],
        jpeg[:2] + 10_000 * b"\xff\xfe\x00\x02" + jpeg[2:],
    ):
        assert refusal(data).reason == "IMAGE_TRUNCATED"


def run_length_bmp(width: int, height: int) -> bytes:
    """Return an 8-bit grey BMP whose rows are one grey pixel and then black."""
    greys = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    rows = b"\x01\x80\x00\x00" * height + b"\x00\x01"
    start = 14 + 40 + len(greys)
    header = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start)
    return header + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0) + greys + rows


def test_a_run_length_coded_bmp_is_read_if_it_is_not_large() -> None:
    """Pillow decodes it in Python: 30 KB that claim 49 million pixels held the interpreter for six seconds."""
    read = np.asarray(read_image(run_length_bmp(60, 40), LIMITS))
    assert (read[:, 0] == 128).all()
    assert not read[:, 1:].any()
    started = time.thread_time()
    assert refusal(run_length_bmp(7000, 7000)).reason == "IMAGE_TOO_MANY_PIXELS"
    assert time.thread_time() - started < 0.5


def test_sizes_no_decoder_should_believe() -> None:
    """Headers that claim gigapixels: at Pillow's own limits, above them, and in containers that state it twice."""
    gif = bytearray(saved(gradient(), "GIF"))
    gif[6:10] = b"\xff\xff\xff\xff"
    bmp = bytearray(saved(gradient(), "BMP"))
    bmp[18:26] = struct.pack("<ii", 2**31 - 1, 2**31 - 1)
    webp = bytearray(saved(gradient(), "WEBP", save_all=True, append_images=[gradient().rotate(180)]))
    assert webp[12:16] == b"VP8X"
    webp[24:30] = b"\xff\x3f\x00\xff\x3f\x00"
    for data in (png_of_one_colour(10_000, 10_000), bytes(gif), bytes(bmp), bytes(webp)):
        started = time.thread_time()
        assert refusal(data).reason in ("IMAGE_TOO_MANY_PIXELS", "IMAGE_TRUNCATED", "IMAGE_UNSUPPORTED")
        assert time.thread_time() - started < 0.5
