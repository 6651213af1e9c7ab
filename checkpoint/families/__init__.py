"""Describe models by family: configuration and tensors. Needs no torch."""

from checkpoint.families.model import ModelConfig, layout, without_quantization
from checkpoint.families.parts import LanguageConfig, Part, Quantization, RopeScaling, SamplingDefaults, Scheme
from checkpoint.families.qwen3_vl import QWEN3_VL_PRESETS, Qwen3VisionConfig, Qwen3VLConfig
from checkpoint.families.resampler import QUERY, ResamplerConfig, ResamplerModelConfig, VisionConfig
from checkpoint.families.tensors import EMBEDDING, HALVES, HEAD, Half, TensorSpec, decoder_layout, half_of

# Every family by the name that `config.json` gives. A file without a name is of the first.
FAMILIES: dict[str, type[ModelConfig]] = {"resampler": ResamplerModelConfig, "qwen3_vl": Qwen3VLConfig}

__all__ = [
    "EMBEDDING",
    "FAMILIES",
    "HALVES",
    "HEAD",
    "QUERY",
    "QWEN3_VL_PRESETS",
    "Half",
    "LanguageConfig",
    "ModelConfig",
    "Part",
    "Quantization",
    "Qwen3VLConfig",
    "Qwen3VisionConfig",
    "ResamplerConfig",
    "ResamplerModelConfig",
    "RopeScaling",
    "SamplingDefaults",
    "Scheme",
    "TensorSpec",
    "VisionConfig",
    "decoder_layout",
    "half_of",
    "layout",
    "without_quantization",
]
