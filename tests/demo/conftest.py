"""Fixtures of the demo's tests."""

import pytest
from tokenizers import Tokenizer

from checkpoint.families import ResamplerModelConfig
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
