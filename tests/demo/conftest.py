"""Fixtures of the demo's tests."""

import pytest
from tokenizers import Tokenizer

from checkpoint.families import ResamplerConfig, ResamplerModelConfig, VisionConfig
from checkpoint.presets import RESAMPLER_PRESETS
from demo.tokenizer import VOCABULARY_SIZE, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return the demo's tokenizer."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def small_model() -> ResamplerModelConfig:
    """Return a tiny model with the demo's vocabulary."""
    tiny = RESAMPLER_PRESETS["tiny"]
    return tiny.model_copy(update={"language": tiny.language.model_copy(update={"vocab_size": VOCABULARY_SIZE})})


@pytest.fixture(scope="session")
def small_direct_model(small_model: ResamplerModelConfig) -> ResamplerModelConfig:
    """Return a tiny direct model: 196 visual tokens, no resampler."""
    vision = VisionConfig(patch_size=16, width=32, num_layers=2, num_heads=2, mlp_width=64, pool_size=1)
    language = small_model.language.model_copy(update={"modality_embedding": True})
    return ResamplerModelConfig(vision=vision, resampler=ResamplerConfig(kind="none"), language=language)
