"""Each image file becomes correct pixels or one typed error."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from chassis.errors import InvalidArgument
from checkpoint.families import VisionConfig
from processing.square_images import SquareImages
from tests.vision_service.image_samples import LIMITS, gradient, rejection, saved
from vision_service.image_reader import ImageLimits, read_image

# pytest resets the filter that the module itself sets.
pytestmark = [
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin"),
]

VISION = VisionConfig()
IMAGES = SquareImages(VISION, num_visual_tokens=32)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_every_format_is_read(kind: str) -> None:
    image = gradient()
    options = {"lossless": True} if kind == "WEBP" else {}
    read = read_image(saved(image, kind, **options), LIMITS)
    assert (read.mode, read.size) == ("RGB", image.size)
    difference = np.abs(np.asarray(read, np.int16) - np.asarray(image, np.int16)).max()
    assert difference <= {"JPEG": 60, "GIF": 40}.get(kind, 0)


def test_other_formats_are_rejected() -> None:
    """Decoders of rare formats are needless attack surface."""
    for kind in ("TIFF", "ICO", "PPM", "EPS", "TGA"):
        assert rejection(saved(gradient(), kind)).reason == "IMAGE_UNSUPPORTED"
    for text in (b"hello", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", bytes(1000)):
        assert rejection(text).reason == "IMAGE_UNSUPPORTED"


def test_an_empty_file_is_rejected() -> None:
    assert rejection(b"").reason == "IMAGE_EMPTY"


def test_a_file_that_is_too_large_is_rejected_undecoded() -> None:
    data = bytes(25 * 2**20)
    started = time.thread_time()
    assert rejection(data).reason == "IMAGE_TOO_LARGE"
    assert time.thread_time() - started < 0.1


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_an_image_without_area_is_too_small(size: tuple[int, int]) -> None:
    assert rejection(saved(Image.new("RGB", size), "PNG")).reason == "IMAGE_TOO_SMALL"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_the_pixel_limit_applies_to_every_format(kind: str) -> None:
    data = saved(gradient(40, 25), kind)
    assert read_image(data, ImageLimits(max_pixels=1000)).size == (40, 25)
    assert rejection(data, ImageLimits(max_pixels=999)).reason == "IMAGE_TOO_MANY_PIXELS"


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "GIF", "JPEG"])
def test_a_truncated_image_is_rejected(kind: str) -> None:
    data = saved(gradient(), kind)
    for share in (0.3, 0.5, 0.7):
        assert rejection(data[: int(len(data) * share)]).reason in ("IMAGE_TRUNCATED", "IMAGE_UNSUPPORTED")
    assert rejection(data[: len(data) // 2]).reason == "IMAGE_TRUNCATED" or kind == "WEBP"


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_damaged_bytes_give_an_image_or_a_typed_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["PNG", "BMP", "WEBP", "GIF", "JPEG"]))
    content = bytearray(saved(gradient(24, 16), kind))
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        content[position] = data.draw(st.integers(0, 255))
    try:
        image = read_image(bytes(content), ImageLimits(max_pixels=1_000_000))
    except InvalidArgument:
        return
    assert image.mode == "RGB"
    assert np.isfinite(IMAGES.to_pixels(image)).all()


def test_bytes_after_the_end_of_the_image_are_ignored() -> None:
    """A polyglot file is two formats at once."""
    data = saved(gradient(), "PNG")
    assert read_image(data + b"PK\x03\x04" + bytes(100), LIMITS).tobytes() == read_image(data, LIMITS).tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = gradient()
    stored = {
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        read = read_image(saved(stored, kind, exif=exif, **options), LIMITS)
        np.testing.assert_array_equal(np.asarray(read), np.asarray(upright))


def test_damaged_exif_is_ignored() -> None:
    data = saved(gradient(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert read_image(data, LIMITS).size == gradient().size


def test_cmyk_is_read_as_colour() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = np.asarray(read_image(saved(image, "JPEG"), LIMITS))[4, 4]
    assert (red > 200, green < 60, blue < 60) == (True, True, True)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    """Clipping would turn all values above 255 of 65535 white."""
    values = np.array([[0, 255, 256], [32768, 40000, 65535]], np.uint16)
    read = np.asarray(read_image(saved(Image.fromarray(values), "PNG"), LIMITS))
    np.testing.assert_array_equal(read[..., 0], values >> 8)
    np.testing.assert_array_equal(read[..., 0], read[..., 2])


def test_transparency_becomes_white() -> None:
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([*BLUE, *RED])
    palette.paste(1, (2, 0, 4, 4))
    rgba = Image.new("RGBA", (4, 4), (*BLUE, 0))
    rgba.paste((*RED, 255), (2, 0, 4, 4))
    for data in (
        saved(palette, "PNG", transparency=0),
        saved(palette, "GIF", transparency=0),
        saved(rgba, "PNG"),
        saved(rgba, "WEBP", lossless=True),
    ):
        read = read_image(data, LIMITS)
        assert (read.getpixel((0, 0)), read.getpixel((3, 0))) == (WHITE, RED)
    half = saved(Image.new("LA", (4, 4), (0, 128)), "PNG")
    assert read_image(half, LIMITS).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (8, 8), BLUE)]
    data = saved(Image.new("RGB", (8, 8), RED), kind, save_all=True, append_images=frames, duration=50, **options)
    assert read_image(data, LIMITS).getpixel((4, 4)) == RED


def test_pixels_are_normalised_colours() -> None:
    pixels = IMAGES.to_pixels(Image.new("RGB", (224, 224), (255, 0, 51)))
    assert pixels.shape == (3, 224, 224)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    expected = (np.array([1.0, 0.0, 0.2]) - VISION.image_mean) / VISION.image_std
    np.testing.assert_allclose(pixels, np.broadcast_to(expected[:, None, None], pixels.shape), rtol=1e-5)


def test_a_wide_image_keeps_its_proportions_between_borders_near_zero() -> None:
    pixels = IMAGES.to_pixels(Image.new("RGB", (400, 200), WHITE))
    border = np.concatenate([pixels[:, :56], pixels[:, 168:]], axis=1)
    assert np.abs(border).max() < 0.01
    assert pixels[:, 56:168].min() > 1.5


def test_an_extremely_wide_image_keeps_at_least_a_line() -> None:
    assert IMAGES.to_pixels(Image.new("RGB", (20_000, 2), WHITE)).max() > 1.5
