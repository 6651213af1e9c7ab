"""Choose the vision model of a family. Only this file lists them."""

from checkpoint.families import ModelConfig, Qwen3VLConfig, ResamplerModelConfig
from vision_service.model.encoder import VisionHalf
from vision_service.model.qwen3_vl import Qwen3VisionHalf


def build_vision_model(config: ModelConfig) -> VisionHalf | Qwen3VisionHalf:
    """Return the vision half of a model, with uninitialised weights."""
    match config:
        case ResamplerModelConfig():
            return VisionHalf(config)
        case Qwen3VLConfig():
            return Qwen3VisionHalf(config)
    raise TypeError(f"there is no vision model for the family {config.family!r}")
