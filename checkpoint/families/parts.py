"""Configuration parts that all model families share. Needs no torch."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

# Far above every released model. A larger number is a mistake, or made to take a process's memory.
Layers = Annotated[int, Field(ge=1, le=1024)]
Heads = Annotated[int, Field(ge=1, le=4096)]
Width = Annotated[int, Field(ge=1, le=2**20)]  # elements of a vector
Tokens = Annotated[int, Field(ge=1, le=2**24)]
Pixels = Annotated[int, Field(ge=1, le=2**14)]  # of a side
Epsilon = Annotated[float, Field(gt=0, le=1)]
RopeBase = Annotated[float, Field(gt=0, le=1e12)]


class Part(BaseModel):
    """A frozen part of a configuration.

    Unknown fields and numbers that are not finite are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RopeScaling(Part):
    """Stretches rotary positions for contexts longer than in training."""

    kind: Literal["linear", "llama3"]
    factor: float = Field(ge=1, le=1e6)
    low_freq_factor: float = Field(default=1.0, gt=0, le=1e6)  # llama3 only
    high_freq_factor: float = Field(default=4.0, gt=0, le=1e6)  # llama3 only
    original_context_length: Tokens = 8192  # llama3 only


class SamplingDefaults(Part):
    """Sampling options for requests that leave them out.

    None is the service's own default.
    """

    temperature: float | None = Field(default=None, ge=0, le=100)
    top_k: int | None = Field(default=None, ge=0, le=2**24)
    top_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=1e6)


class LanguageConfig(Part):
    """The decoder: grouped-query attention, RMSNorm, SwiGLU, rotary positions."""

    width: Width = 4096
    num_layers: Layers = 32
    num_heads: Heads = 32
    num_kv_heads: Heads = 8
    head_dim: int = Field(default=128, ge=1, le=4096)
    mlp_width: Width = 11008
    vocab_size: Tokens = 151936
    context_length: Tokens = 32768
    norm_eps: Epsilon = 1e-6
    rope_theta: RopeBase = 1_000_000.0
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False  # RMSNorm on each head of queries and keys (Qwen3)
    attention_bias: bool = False  # a bias in the q, k and v projections (Qwen2)
    tied_embeddings: bool = True  # the head is the embedding
    modality_embedding: bool = False  # add a learned vector by kind of position: 0 text, 1 image
    mrope_section: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None  # frequencies by time, row and column
    num_deepstack_levels: NonNegativeInt = 0  # levels added after the first layers, at image positions
    eos_token_ids: tuple[int, ...] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse shapes and token ids that do not fit together."""
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd, which rotary positions cannot turn")
        if not all(0 <= token < self.vocab_size for token in self.eos_token_ids):
            raise ValueError(f"eos_token_ids {list(self.eos_token_ids)} are not all below vocab_size {self.vocab_size}")
        if self.mrope_section is not None and sum(self.mrope_section) != self.head_dim // 2:
            raise ValueError(f"mrope_section {list(self.mrope_section)} does not add up to half of {self.head_dim}")
        if self.num_deepstack_levels >= self.num_layers:
            raise ValueError(f"num_deepstack_levels is not below num_layers {self.num_layers}")
        return self

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads
