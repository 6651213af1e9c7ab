"""Describe the resampler family. Needs no torch.

A ViT, a Perceiver resampler or a projection, and a decoder.
"""

from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from checkpoint.families.model import ModelConfig
from checkpoint.families.parts import Epsilon, Heads, Layers, Part, Pixels, Width
from checkpoint.families.tensors import HEAD, Half, Section, TensorSpec, decoder_layout

QUERY = "perceiver_resampler.query"

_MAX_PATCHES = 2**16  # of an image. Far above every released model


class VisionConfig(Part):
    """The vision transformer: square image -> patches -> pooled patches."""

    image_size: Pixels = 224  # pixels a side
    patch_size: Pixels = 14  # pixels a side
    width: Width = 1024
    num_layers: Layers = 24
    num_heads: Heads = 16
    mlp_width: Width = 4096
    pool_size: Pixels = 2  # side of the window of patches averaged into one, 1 keeps all
    positions: Literal["learned", "sincos_1d", "sincos_2d"] = "learned"
    linear_bias: bool = False  # a bias in the patch, attention and feed-forward projections
    norm_eps: Epsilon = 1e-6
    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0..1
    image_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse shapes that do not divide."""
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.num_patches > _MAX_PATCHES:
            raise ValueError(f"an image has {self.num_patches} patches, more than {_MAX_PATCHES}")
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
    """Turns pooled patches into visual tokens.

    'perceiver' has learned queries, 'none' only a projection.
    """

    kind: Literal["perceiver", "none"] = "perceiver"
    num_queries: int = Field(default=32, ge=1, le=_MAX_PATCHES)
    num_layers: Layers = 6
    num_heads: Heads = 16
    head_dim: int = Field(default=64, ge=1, le=4096)
    mlp_width: Width = 4096
    norm_eps: Epsilon = 1e-6


class ResamplerModelConfig(ModelConfig):
    """A model with equally many visual tokens per image."""

    family: Literal["resampler"] = "resampler"
    vision: VisionConfig
    resampler: ResamplerConfig

    @property
    def kind(self) -> str:
        """The variant: with a resampler, or with the patches directly."""
        return "resampler" if self.resampler.kind == "perceiver" else "direct"

    @property
    def num_visual_tokens(self) -> int:
        """Visual tokens of one image."""
        return self.resampler.num_queries if self.resampler.kind == "perceiver" else self.vision.num_pooled

    def visual_tokens_of(self, width: int, height: int) -> int:
        """Return the visual tokens of an image of any size."""
        return self.num_visual_tokens

    @property
    def num_levels(self) -> int:
        """Vectors of one visual token."""
        return 1

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Tensor name prefixes of each part of the model."""
        return {
            "vision tower": ("vision_tower.",),
            "resampler": ("perceiver_resampler.", "vision_projection."),
            "decoder": ("language_model.", HEAD),
        }

    def tensors(self) -> list[TensorSpec]:
        """Return every tensor, first used first."""
        return [*_vision_tower(self), *_resampler(self), *decoder_layout(self.language)]

    def half_fields(self, half: Half) -> dict[str, Any]:
        """Return the fields that decide how one half behaves."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        if half == "vision":
            return {
                "vision": fields["vision"],
                "resampler": fields["resampler"],
                "token_width": self.language.width,
            }
        return {"language": fields["language"], "num_visual_tokens": self.num_visual_tokens}


def _vision_tower(config: ResamplerModelConfig) -> Iterator[TensorSpec]:
    vision = config.vision
    width, patch, bias = vision.width, vision.patch_size, vision.linear_bias
    tower = Section("vision_tower.", "vision")
    yield tower.spec("patch_embed.proj.weight", (width, 3, patch, patch), "embedding", "pixels of a patch to a vector")
    if bias:
        yield tower.spec("patch_embed.proj.bias", (width,), "bias", "pixels of a patch to a vector, bias")
    if vision.positions == "learned":
        yield tower.spec("pos_embed", (1, vision.num_patches, width), "embedding", "learned position of each patch")
    for layer in range(vision.num_layers):
        block = Section(f"vision_tower.blocks.{layer}.", "vision")
        yield from block.layer_norm("norm1", width, "norm before attention")
        yield from block.linear("attn.qkv", (3 * width, width), "queries, keys, values", kind="linear", bias=bias)
        yield from block.linear("attn.proj", (width, width), "attention output", kind="output", bias=bias)
        yield from block.layer_norm("norm2", width, "norm before feed-forward")
        yield from block.linear("mlp.fc1", (vision.mlp_width, width), "feed-forward in", kind="linear", bias=bias)
        yield from block.linear("mlp.fc2", (width, vision.mlp_width), "feed-forward out", kind="output", bias=bias)
    yield tower.spec("norm.weight", (width,), "scale", "last norm of the tower, scale")


def _resampler(config: ResamplerModelConfig) -> Iterator[TensorSpec]:
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
        block = Section(f"perceiver_resampler.layers.{layer}.", "vision")
        yield from block.layer_norm("norm_patches", width, "norm of the patches")
        yield from block.layer_norm("norm_latents", width, "norm of the queries")
        yield block.spec("cross_attn.to_q.weight", (inner, width), "linear", "queries' queries")
        yield block.spec("cross_attn.to_kv.weight", (2 * inner, width), "linear", "keys, values of patches and queries")
        yield block.spec("cross_attn.to_out.weight", (width, inner), "output", "attention output")
        yield from block.layer_norm("norm_mlp", width, "norm before feed-forward")
        yield block.spec("mlp.fc1.weight", (mlp_width, width), "linear", "feed-forward in")
        yield block.spec("mlp.fc2.weight", (width, mlp_width), "output", "feed-forward out")
    end = Section("perceiver_resampler.", "vision")
    yield from end.layer_norm("norm", width, "last norm of the resampler")
    yield end.spec("proj.weight", (token_width, width), "linear", "visual tokens to the decoder's width")
