"""The configuration of a whole model, whatever its family. Needs no torch."""

from abc import ABC, abstractmethod
from typing import Any

from pydantic import Field

from checkpoint.families.parts import LanguageConfig, Part
from checkpoint.families.tensors import Half, TensorSpec


class ModelConfig(Part, ABC):
    """A vision-language model. Each family is a subclass. `config.json` is this as JSON."""

    family: str
    language: LanguageConfig
    image_token: str = Field(default="<|image_pad|>", min_length=1)  # the chat template's mark for one image

    @property
    @abstractmethod
    def num_visual_tokens(self) -> int | None:
        """Visual tokens of one image, None if they depend on its size."""

    @property
    @abstractmethod
    def num_levels(self) -> int:
        """Vectors of one visual token: its embedding, then one for each DeepStack level."""

    @property
    def token_width(self) -> int:
        """Elements of one visual token, all levels together."""
        return self.num_levels * self.language.width

    @property
    def kind(self) -> str:
        """The family, and its variant if it has some, for people."""
        return self.family

    @property
    @abstractmethod
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Tensor name prefixes of each part of the model, for people."""

    @abstractmethod
    def tensors(self) -> list[TensorSpec]:
        """Return every tensor in the order data flows, vision half first."""

    @abstractmethod
    def half_fields(self, half: Half) -> dict[str, Any]:
        """Return the fields that decide how one half behaves, without fields at their default.

        The digest of a half covers them. Without defaults, the digests of released checkpoints stay when a field is
        added. Its default must then mean the behaviour before. The defaults themselves never change.
        """


def layout(config: ModelConfig) -> list[TensorSpec]:
    """Return every tensor of a model in the order data flows, vision half first."""
    return config.tensors()
