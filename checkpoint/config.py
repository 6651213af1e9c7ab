"""What a model is made of: `config.json`, read and checked.

Nothing about a model's shape stands anywhere else in the code. This module needs no torch, so the gateway reads it too.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from chassis.errors import FailedPrecondition
from chassis.validation import problems

CONFIG_FILE = "config.json"


class Part(BaseModel):
    """A frozen part of a configuration; an unknown field is an error, and so is a number that is not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VisionConfig(Part):
    """The vision transformer: square image -> patches -> pooled patches."""

    image_size: PositiveInt = 224  # pixels a side
    patch_size: PositiveInt = 14  # pixels a side
    width: PositiveInt = 1024
    num_layers: PositiveInt = 24
    num_heads: PositiveInt = 16
    mlp_width: PositiveInt = 4096
    pool_size: PositiveInt = 2  # side of the window of patches averaged into one; 1 keeps every patch
    positions: Literal["learned", "sincos_1d", "sincos_2d"] = "learned"
    linear_bias: bool = False  # a bias in the patch, attention and feed-forward projections
    norm_eps: float = Field(default=1e-6, gt=0)
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0..1
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse shapes that do not divide."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.grid_size % self.pool_size:
            raise ValueError(f"a grid of {self.grid_size} patches is not a multiple of pool_size {self.pool_size}")
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} is not a multiple of num_heads {self.num_heads}")
        if self.positions != "learned" and self.width % 4:
            raise ValueError(f"width {self.width} is not a multiple of 4, which {self.positions} positions need")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above 0")
        return self

    @property
    def grid_size(self) -> int:
        """Patches along one side of the image."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches of one image."""
        return self.grid_size**2

    @property
    def num_pooled(self) -> int:
        """Patches of one image after pooling."""
        return (self.grid_size // self.pool_size) ** 2


class ResamplerConfig(Part):
    """From pooled patches to visual tokens: learned queries (perceiver) or a projection alone (none)."""

    kind: Literal["perceiver", "none"] = "perceiver"
    num_queries: PositiveInt = 32
    num_layers: PositiveInt = 6
    num_heads: PositiveInt = 16
    head_dim: PositiveInt = 64
    mlp_width: PositiveInt = 4096
    norm_eps: float = Field(default=1e-6, gt=0)


class RopeScaling(Part):
    """Stretches rotary positions so that a decoder reads further than it was trained to."""

    kind: Literal["linear", "llama3"]
    factor: float = Field(ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0)  # llama3 only
    high_freq_factor: float = Field(default=4.0, gt=0)  # llama3 only
    original_context_length: PositiveInt = 8192  # llama3 only


class LanguageConfig(Part):
    """The decoder: grouped-query attention, RMSNorm, SwiGLU, rotary positions."""

    width: PositiveInt = 4096
    num_layers: PositiveInt = 32
    num_heads: PositiveInt = 32
    num_kv_heads: PositiveInt = 8
    head_dim: PositiveInt = 128
    mlp_width: PositiveInt = 11008
    vocab_size: PositiveInt = 151936
    context_length: PositiveInt = 32768  # tokens
    norm_eps: float = Field(default=1e-6, gt=0)
    rope_theta: float = Field(default=1_000_000.0, gt=0)
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False  # RMSNorm on each head of queries and keys (Qwen3)
    attention_bias: bool = False  # a bias in the q, k and v projections (Qwen2)
    tied_embeddings: bool = True  # the head is the embedding
    modality_embedding: bool = False  # add a learned vector by kind of position: 0 text, 1 image
    eos_token_ids: tuple[int, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse shapes that do not divide and token ids outside the vocabulary."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, which rotary positions cannot turn")
        if not all(0 <= token < self.vocab_size for token in self.eos_token_ids):
            raise ValueError(f"eos_token_ids {list(self.eos_token_ids)} are not all below vocab_size {self.vocab_size}")
        return self

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads


class ModelConfig(Part):
    """A whole vision-language model; `config.json` is this as JSON."""

    vision: VisionConfig
    resampler: ResamplerConfig
    language: LanguageConfig
    image_token: str = Field(default="<|image_pad|>", min_length=1)  # the chat template's mark for one image

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens one image becomes."""
        return self.resampler.num_queries if self.resampler.kind == "perceiver" else self.vision.num_pooled


def read_config(folder: Path) -> ModelConfig:
    """Read `config.json` of a checkpoint folder.

    Raises:
        FailedPrecondition: the file is missing or does not describe a model; the message names each bad field.
    """
    try:
        text = (folder / CONFIG_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(
            f"Checkpoint {folder.name} has no readable {CONFIG_FILE}.", reason="BAD_CHECKPOINT"
        ) from error
    return parse_config(text, f"{CONFIG_FILE} of {folder.name}")


def parse_config(text: str | bytes, source: str) -> ModelConfig:
    """Read a configuration from JSON; `source` names it in messages.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the text does not describe a model; the message names each bad field.
    """
    try:
        return ModelConfig.model_validate_json(text)
    except ValidationError as error:
        found = "; ".join(problems(error))
        raise FailedPrecondition(f"The file {source} is not valid: {found}.", reason="BAD_CHECKPOINT") from error


def write_config(config: ModelConfig, folder: Path) -> None:
    """Write `config.json` into a checkpoint folder."""
    (folder / CONFIG_FILE).write_text(config.model_dump_json(indent=2) + "\n")
