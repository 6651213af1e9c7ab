"""What the demo's tests share."""

import pytest
import torch
from tokenizers import Tokenizer

from checkpoint.config import ModelConfig
from checkpoint.presets import PRESETS
from demo.tokenizer import VOCABULARY_SIZE, train_tokenizer


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sum in the same order every time, so that equal runs are equal to the last bit."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """Return the demo's tokenizer."""
    return train_tokenizer()


@pytest.fixture(scope="session")
def small_model() -> ModelConfig:
    """Return the smallest model that takes the demo's pictures and words."""
    tiny = PRESETS["tiny"]
    return tiny.model_copy(update={"language": tiny.language.model_copy(update={"vocab_size": VOCABULARY_SIZE})})
