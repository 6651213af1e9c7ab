"""Resized images against transformers' own image processor."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from chassis.errors import InvalidArgument
from checkpoint.families import Qwen3VisionConfig
from processing.image_files import upright_size
from processing.resized_images import ResizedImages
from tests.processing.image_zoo import IMAGES, noise

CONFIG = Qwen3VisionConfig()
MAX_PIXELS = 2**20


def reference_pixels(image: Image.Image, max_pixels: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Return transformers' patches, one frame each, and the grid."""
    processor = Qwen2VLImageProcessorPil(
        patch_size=16,
        temporal_patch_size=2,
        merge_size=2,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        size={"shortest_edge": CONFIG.min_pixels, "longest_edge": max_pixels},
    )
    batch = processor(images=[image], return_tensors="np")
    _, rows, columns = batch["image_grid_thw"][0].tolist()
    return batch["pixel_values"].reshape(-1, 3, 2, 16, 16)[:, :, 0], (rows // 2, columns // 2)


@pytest.mark.parametrize("max_pixels", [MAX_PIXELS, 300_000])
@pytest.mark.parametrize("name", IMAGES)
def test_pixels_equal_those_of_transformers_to_the_bit(name: str, max_pixels: int) -> None:
    images = ResizedImages(CONFIG, max_pixels=max_pixels)
    pixels = images.to_pixels(IMAGES[name])
    expected, grid = reference_pixels(IMAGES[name], max_pixels)
    assert images.grid(*IMAGES[name].size) == grid
    blocks = pixels.reshape(3, grid[0], 2, 16, grid[1], 2, 16).transpose(1, 4, 2, 5, 0, 3, 6).reshape(expected.shape)
    np.testing.assert_array_equal(blocks, expected)


@pytest.mark.parametrize(
    ("size", "tokens"),
    [((256, 256), 64), ((512, 512), 256), ((640, 480), 300), ((1024, 1024), 1024), ((1920, 1080), 2040)],
)
def test_visual_tokens_of_published_sizes(size: tuple[int, int], tokens: int) -> None:
    assert ResizedImages(CONFIG).num_visual_tokens(*size) == tokens


@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(2**16, 2**22))
def test_sizes_equal_those_of_transformers_and_keep_the_budget(width: int, height: int, max_pixels: int) -> None:
    images = ResizedImages(CONFIG, max_pixels=max_pixels)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(InvalidArgument) as caught:
            images.grid(width, height)
        assert caught.value.reason == "IMAGE_TOO_NARROW"
        return
    rows, columns = images.grid(width, height)
    assert (rows * 32, columns * 32) == smart_resize(height, width, 32, CONFIG.min_pixels, max_pixels)
    assert rows * columns <= images.max_visual_tokens


def test_the_name_of_the_steps_follows_their_settings() -> None:
    """Other pixels must never share an encoder id."""
    names = {ResizedImages(CONFIG, max_pixels=pixels).preprocessing for pixels in (2**16, 2**18, 2**20)}
    assert len(names) == 3
    assert ResizedImages(CONFIG).preprocessing == ResizedImages(CONFIG, max_pixels=2**30).preprocessing


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_a_file_is_that_of_its_upright_image(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    noise(300, 200).save(file, "JPEG", exif=exif)
    assert upright_size(file.getvalue()) == ((300, 200) if orientation < 5 else (200, 300))


@pytest.mark.parametrize(
    ("data", "reason"), [(b"", "IMAGE_EMPTY"), (b"%PDF-1.7", "IMAGE_UNSUPPORTED"), (b"\x89PNG\r\n\x1a\n", "IMAGE_")]
)
def test_a_size_that_cannot_be_read_is_a_typed_error(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        upright_size(data)
    assert caught.value.reason.startswith(reason)
