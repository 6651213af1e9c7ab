"""Compare an exported graph with torch in float32.

B images of one run, N visual tokens, D decoder width
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.exports import Precision
from checkpoint.families import ModelConfig
from processing import ImageProcessor, Pixels, load_upright
from vision_service.model import Run, build_vision_model, graph_batches

# Largest and mean error of visual tokens, relative to the largest and to the mean magnitude.
BOUNDS: dict[Precision, tuple[float, float]] = {
    "float32": (1e-4, 1e-4),
    "float16": (1e-2, 1e-2),
    "bfloat16": (5e-2, 5e-2),
}

_SIZES = ((256, 256), (480, 320), (300, 600))  # width and height of the images made here


@dataclass(frozen=True, slots=True)
class Errors:
    """The error of visual tokens, relative to the exact ones."""

    max_error: float  # largest difference / largest magnitude
    mean_error: float  # mean difference / mean magnitude
    num_images: int

    def check(self, precision: Precision, subject: str) -> None:
        """Refuse errors above the bounds of a precision.

        Raises:
            FailedPrecondition: EXPORT_INEXACT.
        """
        largest, mean = BOUNDS[precision]
        if not (self.max_error <= largest and self.mean_error <= mean):  # also refuses NaN
            raise FailedPrecondition(
                f"The {subject} differs too much from torch in float32: at most by {self.max_error:.2g} (allowed "
                f"{largest:g}), on average by {self.mean_error:.2g} (allowed {mean:g}).",
                reason="EXPORT_INEXACT",
            )


@dataclass(frozen=True, slots=True)
class Samples:
    """Images with their exact visual tokens."""

    config: ModelConfig
    images: list[Pixels]
    exact: list[Tensor]  # [N, levels x D] of each, by torch in float32


def sample_images(processor: ImageProcessor, files: Sequence[Path] = ()) -> list[Pixels]:
    """Return noise, drawings and image files, ready for the model.

    Args:
        processor: of the model.
        files: image files to add.
    """
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in _SIZES[:2]]
    images += [_drawing(size) for size in _SIZES]
    images += [load_upright(Image.open(file)) for file in files]
    return [processor.to_pixels(image) for image in images]


def reference_tokens(config: ModelConfig, tensors: Mapping[str, Tensor], images: Sequence[Pixels]) -> list[Tensor]:
    """Return the visual tokens [N, levels x D] by torch.

    Args:
        config: of the model.
        tensors: the vision half in float32.
        images: pixels of each.
    """
    with torch.device("meta"):
        half = build_vision_model(config)
    half.load_state_dict(tensors, assign=True)
    half.float().eval()
    with torch.inference_mode():
        return [half.encode([torch.from_numpy(image)])[0] for image in images]


def compare(run: Run, samples: Samples) -> Errors:
    """Return the error of a graph, alone and in batches."""
    config, images, exact = samples.config, samples.images, samples.exact
    found: list[tuple[Tensor, Tensor]] = []
    for some in ([0], list(range(len(images)))):
        for batch in graph_batches(config, [images[place] for place in some]):
            shape = (len(batch.images), batch.num_tokens, config.token_width)
            tokens_BND = run(batch.inputs, shape).float().cpu().clone()  # its memory may be reused
            found += [(tokens_BND[row], exact[some[place]]) for row, place in enumerate(batch.images)]
    differences = [(tokens - right).abs() for tokens, right in found]
    largest = max(right.abs().max().item() for right in exact)
    mean = torch.cat([right.abs().flatten() for right in exact]).mean().item()
    worst = max(difference.max().nan_to_num(torch.inf).item() for difference in differences)
    average = torch.cat([difference.flatten() for difference in differences]).mean().item()
    return Errors(worst / largest, average / mean, len(images))


def _drawing(size: tuple[int, int]) -> Image.Image:
    """Return a drawing: smooth colours, edges and text."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    width, height = size
    draw.rectangle((width // 8, height // 8, width // 2, height // 2), fill="crimson", outline="black", width=3)
    draw.ellipse((width // 3, height // 3, width - 9, height - 9), fill="royalblue", outline="white", width=2)
    draw.text((width // 6, height // 6), "TANDEM 123", fill="white")
    return image
