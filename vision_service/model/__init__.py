"""The vision half in plain torch: ViT and resampler."""

from vision_service.model.encoder import VisionHalf
from vision_service.model.positions import sincos_2d

__all__ = [
    "VisionHalf",
    "sincos_2d",
]
