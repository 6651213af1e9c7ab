"""Equal colours become equal pixels, in every mode and profile."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from checkpoint.families import Qwen3VisionConfig, VisionConfig
from processing.image_files import load_upright, open_image_file
from processing.images import DECODING
from processing.resized_images import ResizedImages
from processing.square_images import SquareImages
from tests.processing.colour_profiles import SRGB, display_p3, swapped
from tests.vision_service.image_samples import gradient, png_chunk, saved

WHITE, GREY = (255, 255, 255), (128, 128, 128)
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF")


def read(data: bytes) -> Image.Image:
    with open_image_file(data) as image:
        return load_upright(image)


def png(depth: int, colour_type: int, row: bytes, *chunks: bytes) -> bytes:
    """Return a PNG of two pixels side by side."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour_type, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def transparent(*values: int) -> bytes:
    return png_chunk(b"tRNS", struct.pack(f">{len(values)}H", *values))


# The first pixel is transparent and the second one grey, in every depth and colour type of the format.
TRANSPARENT_PNGS = {
    "2-bit grey": (png(2, 0, b"\x60", transparent(1)), (170, 170, 170)),
    "4-bit grey": (png(4, 0, b"\x58", transparent(5)), (136, 136, 136)),
    "8-bit grey": (png(8, 0, b"\x07\x80", transparent(7)), GREY),
    "16-bit grey": (png(16, 0, b"\x00\x07\x80\x00", transparent(7)), GREY),
    "8-bit colour": (png(8, 2, b"\x01\x02\x03\x80\x80\x80", transparent(1, 2, 3)), GREY),
    "16-bit colour": (png(16, 2, b"\1\1\2\2\3\3" + b"\x80\x00" * 3, transparent(0x101, 0x202, 0x303)), GREY),
    "palette": (
        png(8, 3, b"\x00\x01", png_chunk(b"PLTE", b"\1\2\3\x80\x80\x80"), png_chunk(b"tRNS", b"\0")),
        GREY,
    ),
    "8-bit grey and alpha": (png(8, 4, b"\x07\x00\x80\xff"), GREY),
    "16-bit grey and alpha": (png(16, 4, b"\x07\0\0\0\x80\0\xff\xff"), GREY),
    "8-bit colour and alpha": (png(8, 6, b"\1\2\3\0\x80\x80\x80\xff"), GREY),
    "16-bit colour and alpha": (png(16, 6, bytes(8) + b"\x80\0" * 3 + b"\xff\xff"), GREY),
}


@pytest.mark.parametrize("name", TRANSPARENT_PNGS)
def test_a_transparent_pixel_is_white_in_every_mode(name: str) -> None:
    data, opaque = TRANSPARENT_PNGS[name]
    image = read(data)
    assert (image.mode, image.getpixel((0, 0)), image.getpixel((1, 0))) == ("RGB", WHITE, opaque)


@pytest.mark.parametrize("bit", [0, 1])
def test_a_transparent_bit_is_white(bit: int) -> None:
    image = read(png(1, 0, b"\x40" if bit == 0 else b"\x80", transparent(bit)))
    other = (255 * (1 - bit),) * 3
    assert (image.getpixel((0, 0)), image.getpixel((1, 0))) == (WHITE, other)


@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "F", "I", "I;16", "I;16B"]
)
def test_an_opaque_pillow_image_of_any_mode_is_read(mode: str) -> None:
    assert load_upright(Image.new(mode, (3, 2))).mode == "RGB"


@pytest.mark.parametrize("mode", ["LA", "La", "PA", "RGBA", "RGBa"])
def test_a_transparent_pillow_image_of_any_mode_is_white(mode: str) -> None:
    assert load_upright(Image.new(mode, (3, 2))).getpixel((0, 0)) == WHITE


def test_a_pillow_image_stays_as_it_was() -> None:
    given = Image.new("RGBA", (3, 2), (10, 20, 30, 128))
    load_upright(given)
    assert given.getpixel((0, 0)) == (10, 20, 30, 128)


def gif_with_a_small_frame(*, transparency: bool) -> bytes:
    """Return a large canvas with a small red frame."""
    frame = Image.new("P", (2, 2), 1)
    frame.putpalette([0, 0, 255, 255, 0, 0])
    data = bytearray(saved(frame, "GIF", **({"transparency": 0} if transparency else {})))
    data[6:10] = struct.pack("<HH", 4, 4)
    at = data.index(b",", 13)  # the frame's own size and place
    data[at + 1 : at + 5] = struct.pack("<HH", 1, 1)
    return bytes(data)


@pytest.mark.parametrize("transparency", [True, False])
def test_a_gif_is_white_beyond_its_frame(transparency: bool) -> None:
    """Decoders fill it with the first colour."""
    image = read(gif_with_a_small_frame(transparency=transparency))
    assert [image.getpixel(at) for at in ((0, 0), (1, 1), (2, 2), (3, 3))] == [WHITE, (255, 0, 0), (255, 0, 0), WHITE]


@pytest.mark.parametrize("kind", FORMATS)
def test_colours_follow_the_profile_of_the_file(kind: str) -> None:
    """With swapped primaries, a red bag would be blue."""
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
        "WEBP": {"lossless": True},
        "HEIF": {"quality": 100},
        "PNG": {},
    }
    red_in_p3, blue = Image.new("RGB", (16, 16), (234, 51, 35)), Image.new("RGB", (16, 16), (0, 10, 250))
    for image, profile, expected in ((red_in_p3, display_p3(), (255, 0, 0)), (blue, swapped(), (250, 10, 0))):
        pixels = np.asarray(read(saved(image, kind, icc_profile=profile, **options[kind])), np.int16)
        assert np.abs(pixels - expected).max() <= 8


def test_transparent_and_palette_images_follow_their_profile() -> None:
    half = Image.new("RGBA", (4, 4), (0, 0, 255, 128))
    assert read(saved(half, "PNG", icc_profile=swapped())).getpixel((0, 0)) == (255, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([0, 0, 255])
    assert read(saved(palette, "PNG", icc_profile=swapped())).getpixel((0, 0)) == (255, 0, 0)


def test_a_profile_of_srgb_changes_nothing() -> None:
    data = saved(gradient(), "PNG", icc_profile=SRGB)
    assert read(data).tobytes() == gradient().tobytes()


@pytest.mark.parametrize(
    "profile",
    [
        b"",
        b"no profile",
        swapped()[:200],
        bytes(len(SRGB)),
        swapped().replace(b"RGB ", b"GRAY", 1),
        swapped() + b"mpet",
    ],
    ids=["empty", "text", "truncated", "zeros", "of another space", "of unbounded time"],
)
def test_a_profile_that_cannot_be_used_is_ignored(profile: bytes) -> None:
    for kind in ("JPEG", "PNG"):
        plain = read(saved(gradient(), kind))
        assert read(saved(gradient(), kind, icc_profile=profile)).tobytes() == plain.tobytes()


def test_a_huge_profile_is_ignored() -> None:
    profile = swapped() + bytes(2**21)
    for kind in ("JPEG", "PNG"):
        plain = read(saved(gradient(), kind))
        assert read(saved(gradient(), kind, icc_profile=profile)).tobytes() == plain.tobytes()


def test_grey_of_any_depth_looks_the_same() -> None:
    eight, sixteen = np.arange(256, dtype=np.uint8)[None], np.arange(256, dtype=np.uint16)[None] << 8
    images = [read(saved(Image.fromarray(values), "PNG")) for values in (eight, sixteen)]
    assert images[0].tobytes() == images[1].tobytes()


def test_the_way_to_pixels_is_in_the_name_of_the_steps() -> None:
    """The name is part of the encoder id."""
    for images in (SquareImages(VisionConfig(), num_visual_tokens=32), ResizedImages(Qwen3VisionConfig())):
        assert images.preprocessing.startswith(DECODING)
