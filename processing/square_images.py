"""Scale and pad every image to one square, for the resampler family.

S side of the square, in pixels
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checkpoint.families import VisionConfig
from processing.images import DECODING
from processing.limits import PromptLimits

# Prompts of the resampler family are this long in training.
_MAX_TEXT_TOKENS, _MAX_LENGTH = 512, 1024


class SquareImages:
    """Implements `ImageProcessor` with one size for every image."""

    # Change it whenever the same file would become other pixels.
    preprocessing = f"{DECODING} pad-square-bicubic-v1"

    def __init__(self, config: VisionConfig, *, num_visual_tokens: int) -> None:
        self._config = config
        self._num_visual_tokens = num_visual_tokens

    @property
    def square_side(self) -> int:
        """Side of the model's square input, in pixels."""
        return self._config.image_size

    @property
    def max_pixels(self) -> int:
        """Always 0: the model's input has one size."""
        return 0

    @property
    def max_visual_tokens(self) -> int:
        """Visual tokens of every image."""
        return self._num_visual_tokens

    def grid(self, width: int, height: int) -> None:
        """Return None: resampled visual tokens have no grid."""

    def num_visual_tokens(self, width: int, height: int) -> int:
        """Return the visual tokens of every image."""
        return self._num_visual_tokens

    def to_pixels(self, image: Image.Image) -> NDArray[np.float32]:
        """Return an upright RGB image as [3, S, S].

        The image is scaled (bicubic) until its longer side is S, and centred on a square of the mean colour, as in
        LLaVA-1.5 (Liu et al. 2023, arXiv:2310.03744). So nothing is cropped and proportions stay. Colours in 0..1 are
        then normalised by the configuration's mean and standard deviation, so the border is about 0.
        """
        config, side = self._config, self._config.image_size
        scale = side / max(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        scaled = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BICUBIC)
        if (width, height) != (side, side):
            border = tuple(round(255 * mean) for mean in config.image_mean)
            square = Image.new("RGB", (side, side), border)
            square.paste(scaled, ((side - width) // 2, (side - height) // 2))
            scaled = square
        colours_SS3 = np.asarray(scaled, dtype=np.float32) / np.float32(255)
        mean_3, std_3 = np.array(config.image_mean, np.float32), np.array(config.image_std, np.float32)
        normal_SS3 = (colours_SS3 - mean_3) / std_3
        return np.ascontiguousarray(normal_SS3.transpose(2, 0, 1))

    def batch(self, samples: Sequence[Sequence[NDArray[np.float32]]]) -> dict[str, NDArray[np.float32]]:
        """Return the images of every sample, padded.

        `pixel_values` is [samples, most images of a sample, 3, S, S]. Zeros follow the images of a sample.
        """
        side, most = self._config.image_size, max(map(len, samples))
        pixels = np.zeros((len(samples), most, 3, side, side), np.float32)
        for row, images in zip(pixels, samples, strict=True):
            for index, image in enumerate(images):
                row[index] = image
        return {"pixel_values": pixels}

    def default_limits(self, context_length: int) -> PromptLimits:
        """Return 512 text tokens and 1,024 in all."""
        return PromptLimits(min(_MAX_TEXT_TOKENS, context_length), min(_MAX_LENGTH, context_length))
