"""Resize images to whole visual tokens within a pixel budget, for Qwen3-VL.

The steps are those of `Qwen2VLImageProcessorPil` in transformers, to the bit.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from chassis.errors import InvalidArgument
from checkpoint.families import Qwen3VisionConfig

_MAX_ASPECT_RATIO = 200


class ResizedImages:
    """Implements `ImageProcessor`. The number of visual tokens follows from an image's size."""

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
        """Most visual tokens of one image."""
        return self.max_pixels // self._config.cell_size**2

    @property
    def preprocessing(self) -> str:
        """Name of the steps and their settings."""
        return f"smart-resize-bicubic-v1 {min(self._config.min_pixels, self.max_pixels)}-{self.max_pixels}"

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Return rows and columns of an image's visual tokens.

        Raises:
            InvalidArgument: reason 'IMAGE_TOO_NARROW', one side is over 200 times the other.
        """
        resized_width, resized_height = self._resized(width, height)
        return resized_height // self._config.cell_size, resized_width // self._config.cell_size

    def num_visual_tokens(self, width: int, height: int) -> int:
        """Return the visual tokens of an image of this size. Raises as `grid`."""
        rows, columns = self.grid(width, height)
        return rows * columns

    def to_pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an upright RGB image as model input, [3, height, width]. Raises as `grid`."""
        size = self._resized(*image.size)
        resized = image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
        colours_HW3 = (np.asarray(resized).astype(np.float64) * (1 / 255)).astype(np.float32)
        mean_3, std_3 = (np.array(values, np.float32) for values in (self._config.image_mean, self._config.image_std))
        return np.ascontiguousarray(((colours_HW3 - mean_3) / std_3).transpose(2, 0, 1))

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height after resizing: multiples of a visual token, the area within the budget."""
        if max(width, height) > _MAX_ASPECT_RATIO * min(width, height):
            raise InvalidArgument(
                f"The image has {width} x {height} pixels, but sides may differ by a factor of {_MAX_ASPECT_RATIO}.",
                reason="IMAGE_TOO_NARROW",
                field="image",
            )
        cell, most = self._config.cell_size, self.max_pixels
        least = min(self._config.min_pixels, most)
        rounded_width, rounded_height = (round(length / cell) * cell for length in (width, height))
        if rounded_width * rounded_height > most:
            shrink = math.sqrt(width * height / most)
            return max(cell, math.floor(width / shrink / cell) * cell), max(
                cell, math.floor(height / shrink / cell) * cell
            )
        if rounded_width * rounded_height < least:
            grow = math.sqrt(least / (width * height))
            return math.ceil(width * grow / cell) * cell, math.ceil(height * grow / cell) * cell
        return rounded_width, rounded_height
