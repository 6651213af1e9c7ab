"""Checkpoint layouts and model modules have the same tensors."""

import pytest
import torch
from torch import nn

from checkpoint.families import Half, ResamplerConfig, ResamplerModelConfig, half_of, layout
from checkpoint.presets import RESAMPLER_PRESETS
from language_service.model.decoder import Decoder
from vision_service.model.encoder import VisionHalf

TINY = RESAMPLER_PRESETS["tiny"]


def variant(**parts: dict[str, object]) -> ResamplerModelConfig:
    """Return the tiny model with some fields changed."""
    changed = {name: getattr(TINY, name).model_copy(update=fields) for name, fields in parts.items()}
    return TINY.model_copy(update=changed)


CONFIGS = {
    **RESAMPLER_PRESETS,
    "untied": variant(language={"tied_embeddings": False}),
    "attention bias": variant(language={"attention_bias": True, "qk_norm": False}),
    "modality": variant(language={"modality_embedding": True}),
    "vision bias": variant(vision={"linear_bias": True}),
    "sincos 1d": variant(vision={"positions": "sincos_1d"}),
    "no resampler": variant(resampler=ResamplerConfig(kind="none").model_dump()),
}


def modules(config: ResamplerModelConfig, half: Half) -> nn.Module:
    with torch.device("meta"):
        return VisionHalf(config) if half == "vision" else Decoder(config.language)


@pytest.mark.parametrize("half", ["vision", "language"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_layout_equals_the_modules_state(name: str, half: Half) -> None:
    config = CONFIGS[name]
    expected = {key: tuple(tensor.shape) for key, tensor in modules(config, half).state_dict().items()}
    specs = [spec for spec in layout(config) if spec.half == half]
    assert {spec.name: spec.shape for spec in specs} == expected
    assert len(specs) == len(expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tensors_name_determines_its_half(name: str) -> None:
    assert all(half_of(spec.name) == spec.half for spec in layout(CONFIGS[name]))
