"""Configuration parts that all model families share. Needs no torch."""

import re
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


# Bits of a weight, then of an activation. Activations of 8 bits get a scale a token when they are computed.
Scheme = Literal["w8a8", "w4a16", "w4a8"]

_MATRIX = re.compile(r"(language_model\.layers\.\d+\.)(self_attn\.[qkvo]_proj|mlp\.w[123])")
_JOINED = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.w1", "mlp.w3"))


class Quantization(Part):
    """The decoder's matrices with 8 or 4 bits a weight.

    Stored as compressed-tensors does. Embeddings, norms and biases keep a float type.
    """

    scheme: Scheme
    group: PositiveInt | None = None  # inputs of a row that share a scale. None: all of them
    symmetric: bool = True  # without zero points
    head: bool = False  # the head has 8 bits and a scale for each row, in every scheme
    # Modules that keep a float type, such as 'language_model.layers.0.mlp.w2'.
    left_out: tuple[str, ...] = Field(default=(), max_length=7 * 1024)

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse forms that no kernel computes."""
        if self.scheme == "w8a8" and (self.group is not None or not self.symmetric):
            raise ValueError("w8a8 has one scale for each row and no zero points: group must be null, symmetric true")
        matches = {name: _MATRIX.fullmatch(name) for name in self.left_out}
        if strange := [name for name, match in matches.items() if match is None]:
            raise ValueError(f"left_out names no matrix of the decoder: {', '.join(strange[:5])}")
        for layer in {match[1] for match in matches.values() if match}:
            for names in _JOINED:
                # The engine computes these at once, from one matrix.
                if 0 < sum(f"{layer}{name}" in matches for name in names) < len(names):
                    raise ValueError(f"left_out names some of {', '.join(names)} of {layer[:-1]}, but not all")
        return self

    @property
    def weight_bits(self) -> int:
        """Bits of a weight."""
        return 8 if self.scheme == "w8a8" else 4

    def check_inputs(self, inputs: int) -> None:
        """Raise ValueError if a matrix's row cannot be stored.

        Args:
            inputs: elements of the row.
        """
        if self.group is not None and inputs % self.group:
            raise ValueError(f"a group of {self.group} does not divide the {inputs} inputs of a matrix")
        if self.weight_bits == 4 and (inputs % 8 or (self.group or 2) % 2):
            raise ValueError(f"{inputs} inputs in groups of {self.group} do not fill whole words of 8 weights")

    def __str__(self) -> str:
        """Return the form for people: 'w4a16 g128'."""
        group = f" g{self.group}" if self.group else ""
        return f"{self.scheme}{group}{'' if self.symmetric else ' with zeros'}"


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
    quantization: Quantization | None = None  # None: every matrix has a float type

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
        if self.quantization is not None:
            if self.quantization.head and self.tied_embeddings:
                raise ValueError("a head with 8 bits cannot be the embedding: tied_embeddings must be false")
            for inputs in (self.width, self.num_heads * self.head_dim, self.mlp_width):
                self.quantization.check_inputs(inputs)
        return self

    @property
    def group_size(self) -> int:
        """Query heads that share one key-value head."""
        return self.num_heads // self.num_kv_heads
