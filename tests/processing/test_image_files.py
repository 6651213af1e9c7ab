"""Metadata never refuses an image, and a refusal names its true cause."""

import io
import random
import struct
import subprocess
import sys
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from chassis.errors import InvalidArgument, ResourceExhausted
from processing import image_files
from processing.image_files import load_upright, open_image_file, upright_size
from tests.processing.colour_profiles import swapped
from tests.vision_service.image_samples import gradient, png_chunk, saved

PNG = saved(gradient(), "PNG")
HEAD, REST = PNG[:33], PNG[33:]  # before and after the place of metadata
BOMB = zlib.compress(bytes(50_000_000), 9)  # 50 KB


def read(data: bytes) -> Image.Image:
    with open_image_file(data) as image:
        return load_upright(image)


def refusal(data: bytes) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        read(data)
    return caught.value


def damaged_chunk(kind: bytes, content: bytes) -> bytes:
    chunk = png_chunk(kind, content)
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


METADATA = {
    "1.2 MB of text": png_chunk(b"tEXt", b"Comment\0" + bytes(1_200_000)),
    "a text of 50 MB once decompressed": png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
    "an international text of 50 MB": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
    "a text of an unknown method": png_chunk(b"zTXt", b"Comment\0\7" + BOMB),
    "many texts": 3000 * png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(60_000))),
    "a damaged text": damaged_chunk(b"tEXt", b"Comment\0red"),
    "a damaged gamma": damaged_chunk(b"gAMA", b"\0\0"),
    "a short gamma": png_chunk(b"gAMA", b"\0"),
    "a short chromaticity": png_chunk(b"cHRM", b"\0"),
    "a short size": png_chunk(b"pHYs", b""),
    "damaged EXIF": damaged_chunk(b"eXIf", b"MM\0*"),
    "a damaged profile": damaged_chunk(b"iCCP", b"icc\0\0" + BOMB),
    "a profile of 50 MB": png_chunk(b"iCCP", b"icc\0\0" + BOMB),
    "many profiles of 50 MB": 380 * png_chunk(b"iCCP", b"icc\0\0" + BOMB),
    "a profile of an unknown method": png_chunk(b"iCCP", b"icc\0\7" + zlib.compress(b"x")),
    "a profile without a name": png_chunk(b"iCCP", b"icc"),
    "an animation without frames": png_chunk(b"acTL", b"\0\0\0\0\0\0\0\0"),
    "an unknown chunk": png_chunk(b"teSt", bytes(5000)),
}


@pytest.mark.parametrize("name", METADATA)
def test_no_metadata_of_a_png_refuses_it(name: str) -> None:
    chunk, expected = METADATA[name], gradient().tobytes()
    started = time.thread_time()
    assert read(HEAD + chunk + REST).tobytes() == expected
    assert read(PNG[:-12] + chunk + PNG[-12:]).tobytes() == expected
    assert time.thread_time() - started < 0.5


def test_the_orientation_may_follow_the_pixels_of_a_png() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = png_chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    for data in (HEAD + chunk + REST, PNG[:-12] + chunk + PNG[-12:]):
        assert read(data).size == upright_size(data) == (gradient().height, gradient().width)


def test_the_size_of_a_png_needs_no_decoding() -> None:
    """Only the vision service decodes."""
    data = PNG[: len(PNG) // 2]
    assert upright_size(data) == gradient().size
    assert refusal(data).reason == "IMAGE_TRUNCATED"


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def test_many_exif_segments_of_a_jpeg_cost_little() -> None:
    """A library that joins them takes a minute."""
    jpeg = saved(gradient(), "JPEG")
    exif = segment(0xE1, b"Exif\0\0" + bytes(60_000))
    started = time.thread_time()
    assert read(jpeg[:2] + 300 * exif + jpeg[2:]).tobytes() == read(jpeg).tobytes()
    assert time.thread_time() - started < 0.5
    small = segment(0xE1, b"Exif\0\0")
    started = time.thread_time()
    assert refusal(jpeg[:2] + 1_000_000 * small + jpeg[2:]).reason == "IMAGE_UNSUPPORTED"
    assert time.thread_time() - started < 0.5


def test_the_first_exif_segment_turns_a_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    jpeg = saved(gradient(), "JPEG", exif=exif)
    more = segment(0xE1, b"Exif\0\0MM\0*" + bytes(100)) + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
    at = jpeg.index(b"\xff\xdb")
    assert upright_size(jpeg[:at] + more + jpeg[at:]) == (gradient().height, gradient().width)


@pytest.mark.parametrize("junk", [bytes(10), b"\xff" * 50_000, b"\xff\x01", segment(0xE2, b"MPF\0" + bytes(9))])
def test_junk_between_the_segments_of_a_jpeg_is_skipped(junk: bytes) -> None:
    jpeg = saved(gradient(), "JPEG")
    at = jpeg.index(b"\xff\xdb")
    assert read(jpeg[:at] + junk + jpeg[at:]).tobytes() == read(jpeg).tobytes()


NAMES = (
    b"",
    b"JFIF\0",
    b"Exif\0\0",
    b"Exif\0\0MM\0*\0\0\0\x08",
    b"ICC_PROFILE\0\1\1",
    b"Adobe",
    b"MPF\0",
    b"Photoshop 3.0\0",
)
CHUNKS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tRNS", b"acTL", b"fcTL")


@given(st.integers(0xE0, 0xEF) | st.just(0xFE), st.sampled_from(NAMES), st.binary(max_size=64))
def test_no_content_of_a_segment_refuses_a_jpeg(marker: int, name: bytes, content: bytes) -> None:
    jpeg = saved(gradient(), "JPEG")
    assert read(jpeg[:2] + segment(marker, name + content) + jpeg[2:]).size in (gradient().size, gradient().size[::-1])


@given(st.sampled_from(CHUNKS), st.binary(max_size=64), st.booleans())
def test_no_content_of_a_chunk_refuses_a_png(kind: bytes, content: bytes, is_first: bool) -> None:
    chunk = png_chunk(kind, content)
    data = HEAD + chunk + REST if is_first else PNG[:-12] + chunk + PNG[-12:]
    assert read(data).size in (gradient().size, gradient().size[::-1])


@given(st.sampled_from([b"EXIF", b"ICCP", b"XMP ", b"junk"]), st.binary(max_size=64))
def test_no_content_of_a_chunk_refuses_a_webp(kind: bytes, content: bytes) -> None:
    flags = {b"EXIF": 0x08, b"ICCP": 0x20, b"XMP ": 0x04}.get(kind, 0)
    size = struct.pack("<I", gradient().width - 1)[:3] + struct.pack("<I", gradient().height - 1)[:3]
    pixels = saved(gradient(), "WEBP")[12:]
    metadata = kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
    pieces = [metadata, pixels] if kind == b"ICCP" else [pixels, metadata]
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size + b"".join(pieces)
    assert read(b"RIFF" + struct.pack("<I", len(body)) + body).size in (gradient().size, gradient().size[::-1])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_a_jpeg_that_lacks_only_its_end_is_complete(mode: str, progressive: bool) -> None:
    jpeg = saved(gradient(200, 150).convert(mode), "JPEG", progressive=progressive)
    for cut in (1, 2):
        assert read(jpeg[:-cut]).tobytes() == read(jpeg).tobytes()
    for cut in (len(jpeg) // 3, len(jpeg) // 2):
        assert refusal(jpeg[:-cut]).reason == "IMAGE_TRUNCATED"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_was_cut_anywhere_in_its_pixels_is_truncated(progressive: bool) -> None:
    noise = Image.effect_noise((160, 120), 60).convert("RGB").resize((320, 240))
    jpeg = saved(noise, "JPEG", progressive=progressive, quality=80)
    for _ in range(20):
        assert refusal(jpeg[: random.Random(progressive).randrange(700, len(jpeg) - 3)]).reason == "IMAGE_TRUNCATED"


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "AVIF"])
def test_a_damaged_header_is_not_called_an_unsupported_format(kind: str) -> None:
    data = saved(gradient(), kind)
    error = refusal(data[:16])
    assert (error.reason, error.message) == (
        "IMAGE_TRUNCATED",
        f"The {kind} is truncated or damaged, send a complete file.",
    )


def test_an_unsupported_format_lists_those_supported() -> None:
    for data in (saved(gradient(), "TIFF"), b"MM\0*" + bytes(20), b"<svg/>", bytes(50)):
        error = refusal(data)
        assert (error.reason, error.field) == ("IMAGE_UNSUPPORTED", "image")
        assert "JPEG, PNG, WEBP, GIF, BMP, AVIF" in error.message


def test_avif_is_read() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = saved(gradient(), "AVIF", quality=100, exif=exif)
    assert read(data).size == upright_size(data) == (gradient().height, gradient().width)
    assert refusal(data[:-100]).reason == "IMAGE_TRUNCATED"


@pytest.mark.parametrize("kind", ["AVIF", "HEIF"])
def test_damaged_exif_refuses_neither_avif_nor_heic(kind: str) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    data = saved(gradient(), kind, exif=exif)
    plain = read(data)
    for number in (b"\xff\xff\xff\xff", b"MM\0*\xff\xff\xff\xf0", b"II*\0" + bytes(8)):
        at = data.index(b"MM\0*")
        assert read(data[:at] + number + data[at + len(number) :]).tobytes() == plain.tobytes()


def test_heic_is_read() -> None:
    assert read(saved(Image.new("RGB", (64, 48), (0, 10, 250)), "HEIF", icc_profile=swapped())).size == (64, 48)
    photo = saved(gradient(), "HEIF", quality=100)
    assert read(photo).size == upright_size(photo) == gradient().size
    clear = gradient().convert("RGBA")
    clear.putalpha(0)
    assert read(saved(clear, "HEIF")).getpixel((0, 0)) == (255, 255, 255)
    for cut in (16, 100, len(photo) // 2, len(photo) - 20):
        error = refusal(photo[:cut])
        assert (error.reason, error.message.startswith("The HEIC is truncated")) == ("IMAGE_TRUNCATED", True)


def test_heic_is_refused_without_its_extra() -> None:
    """Checked in an interpreter without the library."""
    program = """
import sys
sys.modules["pillow_heif"] = None
from chassis.errors import InvalidArgument
from processing.image_files import FORMATS, open_image_file
try:
    open_image_file(bytes.fromhex(sys.argv[1]))
except InvalidArgument as error:
    print(FORMATS, error.reason, error.message)
"""
    photo = saved(gradient(), "HEIF")
    run = subprocess.run([sys.executable, "-c", program, photo.hex()], capture_output=True, text=True)
    assert run.stdout.split(" ", 6)[-1].startswith("IMAGE_UNSUPPORTED The format is not supported"), run.stderr
    assert "HEI" not in run.stdout


def test_a_file_of_too_many_pieces_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    many_chunks = HEAD + 200_000 * png_chunk(b"teSt", b"") + REST
    comments = saved(gradient(), "GIF")
    monkeypatch.setattr(image_files, "_MAX_READS", 1000)
    at = comments.index(b",", 13)
    many_blocks = comments[:at] + b"!\xfe" + 2000 * b"\x01x" + b"\0" + comments[at:]
    for data in (many_chunks, many_blocks):
        error = refusal(data)
        assert (error.reason, "small pieces" in error.message) == ("IMAGE_UNSUPPORTED", True)


def test_too_little_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_image_file(PNG) as image:
        monkeypatch.setattr(image, "load", lambda: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(ResourceExhausted) as caught:
            load_upright(image)
    assert (caught.value.reason, caught.value.retry_after_s) == ("NO_MEMORY", 1.0)


def test_tiles_of_a_pillow_image_are_read_from_its_file() -> None:
    """The processor also takes images that a user opened."""
    for kind in ("JPEG", "PNG", "GIF"):
        with Image.open(io.BytesIO(saved(gradient(), kind))) as opened:
            assert load_upright(opened).tobytes() == read(saved(gradient(), kind)).tobytes()
