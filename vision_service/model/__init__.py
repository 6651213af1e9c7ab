"""The vision halves in plain torch, one family a module."""

from vision_service.model.choice import build_vision_model
from vision_service.model.encoder import VisionHalf
from vision_service.model.positions import sincos_2d
from vision_service.model.qwen3_vl import Attend, Attention, LinearGelu

__all__ = [
    "Attend",
    "Attention",
    "LinearGelu",
    "VisionHalf",
    "build_vision_model",
    "sincos_2d",
]
