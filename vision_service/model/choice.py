"""Choose the vision model of a family. Only this file lists them."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from checkpoint.families import ModelConfig, Qwen3VLConfig, ResamplerModelConfig
from vision_service.model.encoder import VisionHalf
from vision_service.model.qwen3_vl import Qwen3VisionHalf


class VisionModel(Protocol):
    """A vision half that encodes images of its family."""

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return each image's visual tokens, [N, levels x D].

        Args:
            images: normalised RGB pixels of each, [3, height, width], of the weights' type, on their device.
        """
        ...


def build_vision_model(config: ModelConfig) -> tuple[nn.Module, VisionModel]:
    """Return the module with the weights, also as a `VisionModel`."""
    match config:
        case ResamplerModelConfig():
            half = VisionHalf(config)
            return half, half
        case Qwen3VLConfig():
            tower = Qwen3VisionHalf(config)
            return tower, tower
    raise TypeError(f"there is no vision model for the family {config.family!r}")
