"""Every tensor a configuration asks for: name, shape, half and what it does. The one place that names weights.

Needs no torch. The modules of the two services carry the same names; a test compares them with this list.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from checkpoint.config import ModelConfig

Half = Literal["vision", "language"]
HALVES: tuple[Half, ...] = ("vision", "language")

# linear: a matrix applied to activations; output: a matrix whose result is added to the residual stream;
# embedding: vectors looked up, added or attended from; scale: a norm's weight; bias: added to a norm or a product.
Kind = Literal["linear", "output", "embedding", "scale", "bias"]

EMBEDDING = "language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
QUERY = "perceiver_resampler.query"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a checkpoint; a matrix is [outputs, inputs]."""

    name: str
    shape: tuple[int, ...]
    half: Half
    kind: Kind
    role: str  # what it does, for people

    @property
    def num_parameters(self) -> int:
        """Elements of the tensor."""
        count = 1
        for length in self.shape:
            count *= length
        return count


def layout(config: ModelConfig) -> list[TensorSpec]:
    """Return every tensor of a model, in the order data flows through it: vision half first."""
    return [*_vision_tower(config), *_resampler(config), *_language(config)]


def half_of(name: str) -> Half | None:
    """Return the half a canonical tensor name belongs to by its prefix, or None for a name of neither."""
    if name.startswith(("vision_tower.", "perceiver_resampler.", "vision_projection.")):
        return "vision"
    return "language" if name.startswith(("language_model.", "lm_head.")) else None


class _Section:
    """Makes the specs of one part: a common prefix, one half."""

    def __init__(self, prefix: str, half: Half) -> None:
        self.prefix, self.half = prefix, half

    def spec(self, name: str, shape: tuple[int, ...], kind: Kind, role: str) -> TensorSpec:
        return TensorSpec(self.prefix + name, shape, self.half, kind, role)

    def layer_norm(self, name: str, width: int, role: str) -> Iterator[TensorSpec]:
        yield self.spec(f"{name}.weight", (width,), "scale", f"{role}, scale")
        yield self.spec(f"{name}.bias", (width,), "bias", f"{role}, shift")

    def linear(self, name: str, shape: tuple[int, int], role: str, *, kind: Kind, bias: bool) -> Iterator[TensorSpec]:
        yield self.spec(f"{name}.weight", shape, kind, role)
        if bias:
            yield self.spec(f"{name}.bias", shape[:1], "bias", f"{role}, bias")


def _vision_tower(config: ModelConfig) -> Iterator[TensorSpec]:
    vision = config.vision
    width, patch, bias = vision.width, vision.patch_size, vision.linear_bias
    tower = _Section("vision_tower.", "vision")
    yield tower.spec("patch_embed.proj.weight", (width, 3, patch, patch), "embedding", "pixels of a patch to a vector")
    if bias:
        yield tower.spec("patch_embed.proj.bias", (width,), "bias", "pixels of a patch to a vector, bias")
    if vision.positions == "learned":
        yield tower.spec("pos_embed", (1, vision.num_patches, width), "embedding", "learned position of each patch")
    for layer in range(vision.num_layers):
        block = _Section(f"vision_tower.blocks.{layer}.", "vision")
        yield from block.layer_norm("norm1", width, "norm before attention")
        yield from block.linear("attn.qkv", (3 * width, width), "queries, keys, values", kind="linear", bias=bias)
        yield from block.linear("attn.proj", (width, width), "attention output", kind="output", bias=bias)
        yield from block.layer_norm("norm2", width, "norm before feed-forward")
        yield from block.linear("mlp.fc1", (vision.mlp_width, width), "feed-forward in", kind="linear", bias=bias)
        yield from block.linear("mlp.fc2", (width, vision.mlp_width), "feed-forward out", kind="output", bias=bias)
    yield tower.spec("norm.weight", (width,), "scale", "last norm of the tower, scale")


def _resampler(config: ModelConfig) -> Iterator[TensorSpec]:
    resampler, width, token_width = config.resampler, config.vision.width, config.language.width
    if resampler.kind == "none":
        shape = (token_width, width)
        yield TensorSpec("vision_projection.weight", shape, "vision", "linear", "patches to the decoder's width")
        return
    yield TensorSpec(
        QUERY, (resampler.num_queries, width), "vision", "embedding", "learned queries, one a visual token"
    )
    inner, mlp_width = resampler.num_heads * resampler.head_dim, resampler.mlp_width
    for layer in range(resampler.num_layers):
        block = _Section(f"perceiver_resampler.layers.{layer}.", "vision")
        yield from block.layer_norm("norm_patches", width, "norm of the patches")
        yield from block.layer_norm("norm_latents", width, "norm of the queries")
        yield block.spec("cross_attn.to_q.weight", (inner, width), "linear", "queries' queries")
        yield block.spec("cross_attn.to_kv.weight", (2 * inner, width), "linear", "keys, values of patches and queries")
        yield block.spec("cross_attn.to_out.weight", (width, inner), "output", "attention output")
        yield from block.layer_norm("norm_mlp", width, "norm before feed-forward")
        yield block.spec("mlp.fc1.weight", (mlp_width, width), "linear", "feed-forward in")
        yield block.spec("mlp.fc2.weight", (width, mlp_width), "output", "feed-forward out")
    end = _Section("perceiver_resampler.", "vision")
    yield from end.layer_norm("norm", width, "last norm of the resampler")
    yield end.spec("proj.weight", (token_width, width), "linear", "visual tokens to the decoder's width")


def _language(config: ModelConfig) -> Iterator[TensorSpec]:
    language = config.language
    width, vocabulary = language.width, (language.vocab_size, language.width)
    decoder = _Section("language_model.", "language")
    tied = " and head (tied)" if language.tied_embeddings else ""
    yield decoder.spec("embed_tokens.weight", vocabulary, "embedding", f"token embedding{tied}")
    if language.modality_embedding:
        yield decoder.spec("modality_embedding.weight", (2, width), "embedding", "added by kind: 0 text, 1 image")
    for layer in range(language.num_layers):
        yield from _decoder_layer(config, layer)
    yield decoder.spec("norm.weight", (width,), "scale", "last norm of the decoder")
    if not language.tied_embeddings:
        yield TensorSpec(HEAD, vocabulary, "language", "linear", "hidden state to logits")


def _decoder_layer(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    language = config.language
    width, head_dim, mlp_width, bias = language.width, language.head_dim, language.mlp_width, language.attention_bias
    q_width, kv_width = language.num_heads * head_dim, language.num_kv_heads * head_dim
    block = _Section(f"language_model.layers.{layer}.", "language")
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
