"""What the demo's tests share."""

import pytest
from tokenizers import Tokenizer

from checkpoint.config import ModelConfig
from checkpoint.presets import PRESETS
from demo.tokenizer import VOCABULARY_SIZE, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return the demo's tokenizer."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def small_model() -> ModelConfig:
    """Return the smallest model that takes the demo's images and words."""
    tiny = PRESETS["tiny"]
    return tiny.model_copy(update={"language": tiny.language.model_copy(update={"vocab_size": VOCABULARY_SIZE})})
