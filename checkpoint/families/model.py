"""The configuration of any model. Needs no torch."""

from abc import ABC, abstractmethod
from typing import Any

from pydantic import Field

from checkpoint.families.parts import LanguageConfig, Part, SamplingDefaults
from checkpoint.families.tensors import Half, TensorSpec


class ModelConfig(Part, ABC):
    """A vision-language model, stored as `config.json`.

    Each family is a subclass.
    """

    family: str
    language: LanguageConfig
    # The chat template's placeholder of one image.
    image_token: str = Field(default="<|image_pad|>", min_length=1, max_length=256)
    default_sampling: SamplingDefaults = SamplingDefaults()

    @property
    @abstractmethod
    def num_visual_tokens(self) -> int | None:
        """Visual tokens of one image. None if its size matters."""

    @abstractmethod
    def visual_tokens_of(self, width: int, height: int) -> int:
        """Return the visual tokens of an image, by its pixels."""

    @property
    @abstractmethod
    def num_levels(self) -> int:
        """Vectors of one visual token: embedding and DeepStack levels."""

    @property
    def token_width(self) -> int:
        """Elements of one visual token, all levels together."""
        return self.num_levels * self.language.width

    @property
    def kind(self) -> str:
        """The family and its variant, for people."""
        return self.family

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Tensor name prefixes of each part, for people."""

    @abstractmethod
    def tensors(self) -> list[TensorSpec]:
        """Return every tensor, first used first."""

    @abstractmethod
    def half_fields(self, half: Half) -> dict[str, Any]:
        """Return the fields that affect one half, without defaults.

        The digest of a half covers them. Without defaults, the digests of released checkpoints stay when a field is
        added. Its default must then mean the behaviour before. The defaults themselves never change.
        """


def without_quantization(config: ModelConfig) -> ModelConfig:
    """Return the same model with matrices of a float type."""
    language = config.language.model_copy(update={"quantization": None})
    return config.model_copy(update={"language": language})


def layout(config: ModelConfig) -> list[TensorSpec]:
    """Return every tensor of a model, first used first."""
    return config.tensors()
