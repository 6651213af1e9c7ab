"""Resize images to whole visual tokens within a pixel budget, for Qwen3-VL.

The steps are those of `Qwen2VLImageProcessorPil` in transformers, to the bit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chassis.errors import InvalidArgument
from checkpoint.families import Qwen3VisionConfig
from processing.images import DECODING
from processing.limits import PromptLimits

_MAX_ASPECT_RATIO = 200


class ResizedImages:
    """Implements `ImageProcessor` for images of any size."""

    def __init__(self, config: Qwen3VisionConfig, *, max_pixels: int | None = None) -> None:
        """Take the pixel budget of the configuration, or less.

        Args:
            config: of the vision tower.
            max_pixels: larger images are scaled down to this many pixels. None leaves the configuration's limit.
        """
        self._config = config
        self.max_pixels = config.max_pixels if max_pixels is None else min(max_pixels, config.max_pixels)

    @property
    def square_side(self) -> int:
        """Always 0: the model's input has any size."""
        return 0

    @property
    def max_visual_tokens(self) -> int:
        """Most visual tokens of one image.

        A narrow image of few pixels grows to at least the lower limit, with sides rounded up. That can exceed a small
        budget: sides that differ by the largest factor make the largest area.
        """
        cell, least = self._config.cell_size, min(self._config.min_pixels, self.max_pixels)
        long, short = math.sqrt(least * _MAX_ASPECT_RATIO), math.sqrt(least / _MAX_ASPECT_RATIO)
        grown = (math.ceil(long / cell) + 1) * (math.ceil(short / cell) + 1)
        return max(self.max_pixels // cell**2, grown)

    @property
    def preprocessing(self) -> str:
        """Name of the steps and their settings."""
        return f"{DECODING} smart-resize-bicubic-v1 {min(self._config.min_pixels, self.max_pixels)}-{self.max_pixels}"

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return rows and columns of an image's visual tokens.

        Raises:
            InvalidArgument: reason 'IMAGE_TOO_NARROW', one side is over 200 times the other.
        """
        resized_width, resized_height = self._resized(width, height)
        return resized_height // self._config.cell_size, resized_width // self._config.cell_size

    def num_visual_tokens(self, width: int, height: int) -> int:
        """Return the visual tokens of an image.

        Raises as `grid`.
        """
        rows, columns = self.grid(width, height)
        return rows * columns

    def to_pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an upright RGB image as [3, height, width].

        Raises as `grid`.
        """
        size = self._resized(*image.size)
        resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        colours_HW3 = (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
        mean_3, std_3 = (np.array(values, np.float32) for values in (self._config.image_mean, self._config.image_std))
        return np.ascontiguousarray(((colours_HW3 - mean_3) / std_3).transpose(2, 0, 1))

    def batch(self, samples: Sequence[Sequence[NDArray[np.float32]]]) -> dict[str, NDArray[Any]]:
        """Return the patches and the grid of every image.

        `pixel_values` is [patches of all images, 3 x frames x side x side]. `image_grid_thw` is [images, 3]: frames
        (1), rows and columns of an image's patches. Nothing is padded.
        """
        images = [image for sample in samples for image in sample]
        patch = self._config.patch_size
        grids = [(1, image.shape[1] // patch, image.shape[2] // patch) for image in images]
        return {
            "pixel_values": np.concatenate([self._patches(image) for image in images]),
            "image_grid_thw": np.array(grids, np.int64),
        }

    def default_limits(self, context_length: int) -> PromptLimits:
        """Return the context for text and for all tokens."""
        return PromptLimits(context_length, context_length)

    def _patches(self, image_3HW: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the patches of an image, grouped by visual token."""
        patch, merge = self._config.patch_size, self._config.merge_size
        rows, columns = (length // self._config.cell_size for length in image_3HW.shape[1:])
        cells = image_3HW.reshape(3, rows, merge, patch, columns, merge, patch).transpose(1, 4, 2, 5, 0, 3, 6)
        patches = cells.reshape(-1, 3, 1, patch, patch)
        # A still image shows the same in every frame.
        return patches.repeat(self._config.temporal_patch_size, axis=2).reshape(len(patches), -1)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing.

        Both are multiples of a visual token's side, and the area is within the budget.
        """
        if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
            raise InvalidArgument(
                f"The image has {width} x {height} pixels, but sides may differ by a factor of {_MAX_ASPECT_RATIO}.",
                reason="IMAGE_TOO_NARROW",
                field="image",
            )
        return self._config.resized(width, height, max_pixels=self.max_pixels)
