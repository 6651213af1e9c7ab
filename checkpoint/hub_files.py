"""The forms of a Hub folder's JSON files. Needs no torch.

A field is required if it gives a shape. Other fields have the default of transformers. Unknown fields are ignored,
because every version of transformers adds some.
"""

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from checkpoint.families import SamplingDefaults
from checkpoint.hub_quantization import CompressedTensors

_Triple = tuple[float, float, float]


class _Form(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ModelType(_Form):
    """The part of any `config.json` of the Hub.

    Our own form lacks it.
    """

    model_type: str | None = None


class Rope(BaseModel):
    """Rotary positions of the decoder.

    Unknown fields would scale them, so they are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rope_type: Literal["default"] = "default"
    type: Literal["default", "mrope"] = "default"  # the older name of `rope_type`
    mrope_section: tuple[PositiveInt, PositiveInt, PositiveInt]
    mrope_interleaved: Literal[True] = True
    rope_theta: float | None = Field(default=None, gt=0)


class VisionRope(BaseModel):
    """Rotary positions of the vision tower."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rope_type: Literal["axial", "default"] = "axial"
    rope_theta: float = Field(default=10_000.0, gt=0)


class TextConfig(_Form):
    """`text_config` of `config.json`."""

    model_type: Literal["qwen3_vl_text"] = "qwen3_vl_text"
    hidden_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    head_dim: PositiveInt
    intermediate_size: PositiveInt
    vocab_size: PositiveInt
    max_position_embeddings: PositiveInt
    hidden_act: Literal["silu"] = "silu"
    attention_bias: Literal[False] = False
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    rope_parameters: Rope | None = None
    rope_scaling: Rope | None = None  # the older name, with theta beside it
    rope_theta: float | None = Field(default=None, gt=0)
    tie_word_embeddings: bool | None = None
    eos_token_id: int | tuple[int, ...] = ()

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse missing rotary positions."""
        if self.rope_parameters is None and self.rope_scaling is None:
            raise ValueError("rope_parameters and rope_scaling are missing, one must give mrope_section")
        if self.rope.rope_theta is None and self.rope_theta is None:
            raise ValueError("rope_theta is missing")
        return self

    @property
    def rope(self) -> Rope:
        """Rotary positions, from either field."""
        rope = self.rope_parameters or self.rope_scaling
        assert rope is not None  # checked
        return rope

    @property
    def theta(self) -> float:
        """The base of the rotary frequencies."""
        theta = self.rope.rope_theta or self.rope_theta
        assert theta is not None  # checked
        return theta


class TowerConfig(_Form):
    """`vision_config` of `config.json`."""

    model_type: Literal["qwen3_vl", "qwen3_vl_vision"] = "qwen3_vl"
    depth: PositiveInt
    hidden_size: PositiveInt
    num_heads: PositiveInt
    intermediate_size: PositiveInt
    out_hidden_size: PositiveInt
    num_position_embeddings: PositiveInt
    deepstack_visual_indexes: tuple[NonNegativeInt, ...]
    patch_size: PositiveInt = 16
    temporal_patch_size: PositiveInt = 2
    spatial_merge_size: PositiveInt = 2
    in_channels: Literal[3] = 3
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"
    rope_parameters: VisionRope = VisionRope()


class Qwen3VL(_Form):
    """`config.json` of a Qwen3-VL model."""

    text_config: TextConfig
    vision_config: TowerConfig
    image_token_id: NonNegativeInt
    tie_word_embeddings: bool | None = None
    quantization_config: CompressedTensors | None = None

    @field_validator("quantization_config", mode="before")
    @classmethod
    def check_quantization(cls, value: Any) -> Any:
        """Refuse quantized weights in other formats."""
        method = value.get("quant_method") if isinstance(value, dict) else value
        if method in ("awq", "gptq") and value.get("bits") == 4:
            return None  # the tensors tell the rest, see `ConvertedTensors`
        if value is not None and method != "compressed-tensors":
            raise ValueError(
                f"quantized weights by {method} cannot be imported, take the release in bfloat16, by "
                "compressed-tensors, or by AWQ or GPTQ with 4 bits"
            )
        return value

    @property
    def tied_embeddings(self) -> bool:
        """Whether the head is the embedding."""
        inner = self.text_config.tie_word_embeddings
        return bool(inner if self.tie_word_embeddings is None else self.tie_word_embeddings)


class _Size(_Form):
    """The budget of pixels: areas, in spite of the names."""

    shortest_edge: PositiveInt
    longest_edge: PositiveInt


class Preprocessor(_Form):
    """`preprocessor_config.json`."""

    image_processor_type: Literal["Qwen2VLImageProcessor", "Qwen2VLImageProcessorFast", "Qwen2VLImageProcessorPil"] = (
        "Qwen2VLImageProcessor"
    )
    patch_size: PositiveInt
    temporal_patch_size: PositiveInt
    merge_size: PositiveInt
    image_mean: _Triple
    image_std: _Triple
    size: _Size | None = None
    min_pixels: PositiveInt | None = None  # the older names of the budget, which win
    max_pixels: PositiveInt | None = None
    do_resize: Literal[True] = True
    do_rescale: Literal[True] = True
    do_normalize: Literal[True] = True
    do_convert_rgb: Literal[True] = True
    resample: Literal[3] = 3  # bicubic
    rescale_factor: float = 1 / 255

    @field_validator("rescale_factor")
    @classmethod
    def check_factor(cls, value: float) -> float:
        """Refuse another factor than 1/255."""
        if not math.isclose(value, 1 / 255, rel_tol=1e-6):
            raise ValueError("it must be 1/255")
        return value

    @model_validator(mode="after")
    def check_budget(self) -> Self:
        """Refuse a missing budget of pixels."""
        if self.size is None and (self.min_pixels is None or self.max_pixels is None):
            raise ValueError("size is missing, it gives the budget of pixels")
        return self

    @property
    def budget(self) -> tuple[int, int]:
        """Lower and upper limit of an image's pixels after resizing."""
        low, high = (self.size.shortest_edge, self.size.longest_edge) if self.size else (0, 0)
        return self.min_pixels or low, self.max_pixels or high


class Processor(_Form):
    """`processor_config.json`."""

    image_processor: Preprocessor


class Generation(_Form):
    """`generation_config.json`."""

    eos_token_id: int | tuple[int, ...] = ()
    do_sample: bool = False
    temperature: float | None = Field(default=None, gt=0, le=100)
    top_k: NonNegativeInt | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)

    def sampling(self) -> SamplingDefaults:
        """Return the sampling options of a request that gives none.

        Without `do_sample` transformers decodes greedily, and heeds the repetition penalty alone.
        """
        penalty = None if self.repetition_penalty == 1 else self.repetition_penalty
        if not self.do_sample:
            return SamplingDefaults(repetition_penalty=penalty)
        return SamplingDefaults(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=penalty,
        )


def token_ids(field: int | tuple[int, ...]) -> tuple[int, ...]:
    """Return the token ids of a field as a tuple."""
    return (field,) if isinstance(field, int) else field
