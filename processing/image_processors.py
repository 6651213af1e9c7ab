"""Choose how a model family turns images into its input."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from checkpoint.families import ModelConfig, Qwen3VLConfig, ResamplerModelConfig
from processing.limits import PromptLimits
from processing.resized_images import ResizedImages
from processing.square_images import SquareImages

Pixels = NDArray[np.float32]  # [3, height, width], normalised


class ImageProcessor(Protocol):
    """The steps between a decoded image and the vision model."""

    @property
    def preprocessing(self) -> str:
        """Name of the steps and their settings.

        Part of every encoder id.
        """
        ...

    @property
    def square_side(self) -> int:
        """Side of the model's square input, in pixels.

        0 if its input has any size.
        """
        ...

    @property
    def max_pixels(self) -> int:
        """Pixels that larger images are scaled down to.

        0 if the model's input has one size.
        """
        ...

    @property
    def max_visual_tokens(self) -> int:
        """Most visual tokens of one image."""
        ...

    def grid(self, width: int, height: int) -> tuple[int, int] | None:
        """Return rows and columns of an image's visual tokens.

        None if they have no grid.

        Args:
            width: of the upright image, in pixels.
            height: likewise.

        Raises:
            InvalidArgument: reason 'IMAGE_TOO_NARROW', the model takes no image of this aspect ratio.
        """
        ...

    def num_visual_tokens(self, width: int, height: int) -> int:
        """Return the visual tokens of an image.

        Raises as `grid`.
        """
        ...

    def to_pixels(self, image: Image.Image) -> Pixels:
        """Return an upright RGB image as model input.

        Raises as `grid`.
        """
        ...

    def batch(self, samples: Sequence[Sequence[Pixels]]) -> dict[str, NDArray[Any]]:
        """Return the images of a batch as named model inputs.

        Args:
            samples: the results of `to_pixels` for the images of each sample. At least one image in all.
        """
        ...

    def default_limits(self, context_length: int) -> PromptLimits:
        """Return the family's usual limits of a prompt.

        Args:
            context_length: of the decoder, in tokens. No limit exceeds it.
        """
        ...


def open_image_processor(config: ModelConfig, *, max_pixels: int | None = None) -> ImageProcessor:
    """Return the image processor of a model.

    Args:
        config: the checkpoint's configuration.
        max_pixels: larger images are scaled down to this many pixels, for families that take any size. None leaves the
            configuration's limit.
    """
    match config:
        case ResamplerModelConfig():
            return SquareImages(config.vision, num_visual_tokens=config.num_visual_tokens)
        case Qwen3VLConfig():
            return ResizedImages(config.vision, max_pixels=max_pixels)
    raise TypeError(f"there is no image processor for the family {config.family!r}")
