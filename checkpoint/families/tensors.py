"""List the tensors of a model. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from checkpoint.families.parts import LanguageConfig, Quantization

Half = Literal["vision", "language"]
HALVES: tuple[Half, ...] = ("vision", "language")

# linear: a matrix applied to activations. output: a matrix whose result is added to the residual stream.
# embedding: vectors that are looked up, added or used as queries. scale: a norm's weight. bias: added to a norm or a
# product. low_bit: what belongs to a matrix with 8 or 4 bits a weight: its scales, zero points and shape.
Kind = Literal["linear", "output", "embedding", "scale", "bias", "low_bit"]

EMBEDDING = "language_model.embed_tokens.weight"
HEAD = "lm_head.weight"

_PER_WORD = 8  # weights of 4 bits in an int32


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint. A matrix is [outputs, inputs].

    A matrix with 4 bits a weight is stored as int32 [outputs, inputs / 8].
    """

    name: str
    shape: tuple[int, ...]
    half: Half
    kind: Kind
    role: str  # description for people
    dtype: str | None = None  # the stored type, such as 'int8'. None: any float type

    @property
    def num_elements(self) -> int:
        """Elements of the tensor."""
        return prod(self.shape)

    @property
    def num_parameters(self) -> int:
        """Weights of the model that the tensor stores."""
        if self.kind == "low_bit":
            return 0
        return self.num_elements * (_PER_WORD if self.dtype == "int32" else 1)


def half_of(name: str) -> Half | None:
    """Return the half of a canonical tensor name, or None."""
    if name.startswith(("vision_tower.", "perceiver_resampler.", "vision_projection.", "visual.")):
        return "vision"
    return "language" if name.startswith(("language_model.", "lm_head.")) else None


class Section:
    """Makes the specs of tensors with one prefix."""

    def __init__(self, prefix: str, half: Half) -> None:
        self.prefix, self.half = prefix, half

    def spec(self, name: str, shape: tuple[int, ...], kind: Kind, role: str) -> TensorSpec:
        """Return the spec of one tensor."""
        return TensorSpec(self.prefix + name, shape, self.half, kind, role)

    def layer_norm(self, name: str, width: int, role: str) -> Iterator[TensorSpec]:
        """Yield the scale and the shift of a LayerNorm."""
        yield self.spec(f"{name}.weight", (width,), "scale", f"{role}, scale")
        yield self.spec(f"{name}.bias", (width,), "bias", f"{role}, shift")

    def linear(self, name: str, shape: tuple[int, int], role: str, *, kind: Kind, bias: bool) -> Iterator[TensorSpec]:
        """Yield matrix and bias of a linear map, [outputs, inputs]."""
        yield self.spec(f"{name}.weight", shape, kind, role)
        if bias:
            yield self.spec(f"{name}.bias", shape[:1], "bias", f"{role}, bias")


def decoder_layout(language: LanguageConfig) -> Iterator[TensorSpec]:
    """Yield the tensors of a decoder, first used first."""
    for spec in _decoder(language):
        if language.quantization is None or spec.kind not in ("linear", "output"):
            yield spec
        else:
            yield from _low_bit(spec, language.quantization)


def _low_bit(spec: TensorSpec, quantization: Quantization) -> Iterator[TensorSpec]:
    """Yield the tensors of a matrix, named by compressed-tensors."""
    outputs, inputs = spec.shape
    part = Section(f"{spec.name}_", spec.half)
    if (not quantization.head) if spec.name == HEAD else (spec.name.removesuffix(".weight") in quantization.left_out):
        yield spec
    elif spec.name == HEAD or quantization.weight_bits == 8:
        yield replace(spec, dtype="int8")
        yield part.spec("scale", (outputs, 1), "low_bit", f"{spec.role}, a scale for each row")
    else:
        groups = inputs // (quantization.group or inputs)
        packed = part.spec("packed", (outputs, inputs // _PER_WORD), spec.kind, f"{spec.role}, 8 weights in an element")
        yield replace(packed, dtype="int32")
        yield part.spec("scale", (outputs, groups), "low_bit", f"{spec.role}, a scale for each group")
        if not quantization.symmetric:
            zeros = part.spec("zero_point", (-(-outputs // _PER_WORD), groups), "low_bit", f"{spec.role}, zeros")
            yield replace(zeros, dtype="int32")
        yield replace(part.spec("shape", (2,), "low_bit", f"{spec.role}, outputs and inputs"), dtype="int64")


def _decoder(language: LanguageConfig) -> Iterator[TensorSpec]:
    """Yield the tensors of a decoder without quantization."""
    width, vocabulary = language.width, (language.vocab_size, language.width)
    decoder = Section("language_model.", "language")
    tied = " and head (tied)" if language.tied_embeddings else ""
    yield decoder.spec("embed_tokens.weight", vocabulary, "embedding", f"token embedding{tied}")
    if language.modality_embedding:
        yield decoder.spec("modality_embedding.weight", (2, width), "embedding", "added by kind: 0 text, 1 image")
    for layer in range(language.num_layers):
        yield from _decoder_layer(language, layer)
    yield decoder.spec("norm.weight", (width,), "scale", "last norm of the decoder")
    if not language.tied_embeddings:
        yield TensorSpec(HEAD, vocabulary, "language", "linear", "hidden state to logits")


def _decoder_layer(language: LanguageConfig, layer: int) -> Iterator[TensorSpec]:
    width, head_dim, mlp_width, bias = language.width, language.head_dim, language.mlp_width, language.attention_bias
    q_width, kv_width = language.num_heads * head_dim, language.num_kv_heads * head_dim
    block = Section(f"language_model.layers.{layer}.", "language")
    yield block.spec("input_layernorm.weight", (width,), "scale", "norm before attention")
    yield from block.linear("self_attn.q_proj", (q_width, width), "queries", kind="linear", bias=bias)
    yield from block.linear("self_attn.k_proj", (kv_width, width), "keys, one a group", kind="linear", bias=bias)
    yield from block.linear("self_attn.v_proj", (kv_width, width), "values, one a group", kind="linear", bias=bias)
    if language.qk_norm:
        yield block.spec("self_attn.q_norm.weight", (head_dim,), "scale", "norm of each query head")
        yield block.spec("self_attn.k_norm.weight", (head_dim,), "scale", "norm of each key head")
    yield block.spec("self_attn.o_proj.weight", (width, q_width), "output", "attention output")
    yield block.spec("post_attention_layernorm.weight", (width,), "scale", "norm before feed-forward")
    yield block.spec("mlp.w1.weight", (mlp_width, width), "linear", "SwiGLU gate")
    yield block.spec("mlp.w3.weight", (mlp_width, width), "linear", "SwiGLU up")
    yield block.spec("mlp.w2.weight", (width, mlp_width), "output", "SwiGLU down")
