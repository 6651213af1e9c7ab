"""Describe the released Qwen3-VL models: configuration and tensor names.

Source: the published checkpoints, and `Qwen3VLForConditionalGeneration` of transformers.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from checkpoint.families.model import ModelConfig
from checkpoint.families.parts import Epsilon, Heads, LanguageConfig, Layers, Part, Pixels, RopeBase, Width
from checkpoint.families.tensors import HEAD, Half, Section, TensorSpec, decoder_layout

# Pixels of a resized image: at least 256 x 256. The largest the model was trained on has 4096 x 4096.
MIN_PIXELS, MAX_PIXELS = 65_536, 16_777_216


class Qwen3VisionConfig(Part):
    """The vision tower, for images of any size.

    It merges patches into visual tokens with DeepStack levels.
    """

    patch_size: Pixels = 16  # pixels a side
    temporal_patch_size: int = Field(default=2, ge=1, le=64)  # frames, all equal for a still image
    merge_size: int = Field(default=2, ge=1, le=64)  # side of the window of patches of one visual token
    width: Width = 1024
    num_layers: Layers = 24
    num_heads: Heads = 16
    mlp_width: Width = 4096
    # A square grid of learned positions, interpolated to each image's grid.
    num_positions: int = Field(default=2304, ge=1, le=2**20)
    deepstack_layers: tuple[NonNegativeInt, ...] = (5, 11, 17)  # layers whose output also becomes a level
    norm_eps: Epsilon = 1e-6
    rope_theta: RopeBase = 10_000.0
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of RGB in 0..1
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    min_pixels: int = Field(default=MIN_PIXELS, ge=1)
    max_pixels: int = Field(default=MAX_PIXELS, ge=1, le=16 * MAX_PIXELS)

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse shapes that do not fit together."""
        if self.width % self.num_heads or self.head_dim % 4:
            raise ValueError(f"width {self.width} over {self.num_heads} heads is not a multiple of 4 for each head")
        if self.grid_side**2 != self.num_positions:
            raise ValueError(f"num_positions {self.num_positions} is not a square")
        if sorted(set(self.deepstack_layers)) != list(self.deepstack_layers):
            raise ValueError("deepstack_layers must ascend")
        if any(layer >= self.num_layers for layer in self.deepstack_layers):
            raise ValueError(f"deepstack_layers are not all below num_layers {self.num_layers}")
        if self.min_pixels > self.max_pixels:
            raise ValueError("min_pixels is above max_pixels")
        if min(self.image_std) <= 0:
            raise ValueError("image_std must be above 0")
        return self

    @property
    def head_dim(self) -> int:
        """Elements of one attention head."""
        return self.width // self.num_heads

    @property
    def grid_side(self) -> int:
        """Learned positions along one side."""
        return math.isqrt(self.num_positions)

    @property
    def cell_size(self) -> int:
        """Pixels along one side of a visual token."""
        return self.patch_size * self.merge_size

    @property
    def num_levels(self) -> int:
        """Vectors of one visual token: embedding and DeepStack levels."""
        return 1 + len(self.deepstack_layers)

    def resized(self, width: int, height: int, *, max_pixels: int) -> tuple[int, int]:
        """Return width and height of an image after resizing.

        Both are multiples of a visual token's side, and their product is within the budget. Source: `smart_resize` of
        transformers.

        Args:
            width: of the image, pixels.
            height: of the image, pixels.
            max_pixels: upper limit of the budget. The lower limit is `min_pixels`, but never more than this.
        """
        cell, least = self.cell_size, min(self.min_pixels, max_pixels)
        rounded_width, rounded_height = (round(length / cell) * cell for length in (width, height))
        if rounded_width * rounded_height > max_pixels:
            shrink = math.sqrt(width * height / max_pixels)
            return max(cell, math.floor(width / shrink / cell) * cell), max(
                cell, math.floor(height / shrink / cell) * cell
            )
        if rounded_width * rounded_height < least:
            grow = math.sqrt(least / (width * height))
            return math.ceil(width * grow / cell) * cell, math.ceil(height * grow / cell) * cell
        return rounded_width, rounded_height


class Qwen3VLConfig(ModelConfig):
    """A released Qwen3-VL model."""

    family: Literal["qwen3_vl"] = "qwen3_vl"
    vision: Qwen3VisionConfig

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse halves that do not fit together."""
        if self.language.mrope_section is None:
            raise ValueError("language.mrope_section is missing, which positions of images need")
        if self.language.num_deepstack_levels != len(self.vision.deepstack_layers):
            raise ValueError("language.num_deepstack_levels is not the number of vision.deepstack_layers")
        return self

    @property
    def num_visual_tokens(self) -> None:
        """Always None: visual tokens depend on the image's size."""
        return

    def visual_tokens_of(self, width: int, height: int) -> int:
        """Return the visual tokens of an image of this size."""
        resized_width, resized_height = self.vision.resized(width, height, max_pixels=self.vision.max_pixels)
        return resized_width * resized_height // self.vision.cell_size**2

    @property
    def num_levels(self) -> int:
        """Vectors of one visual token: embedding and DeepStack levels."""
        return self.vision.num_levels

    @property
    def parts(self) -> dict[str, tuple[str, ...]]:
        """Tensor name prefixes of each part of the model."""
        return {"vision tower": ("visual.",), "decoder": ("language_model.", HEAD)}

    def tensors(self) -> list[TensorSpec]:
        """Return every tensor, first used first."""
        return [*_vision_layout(self), *decoder_layout(self.language)]

    def half_fields(self, half: Half) -> dict[str, Any]:
        """Return the fields that decide how one half behaves."""
        fields = self.model_dump(mode="json", exclude_defaults=True)
        if half == "vision":
            return {
                "family": self.family,
                "vision": fields["vision"],
                "token_width": self.language.width,
            }
        return {"family": self.family, "language": fields["language"], "num_levels": self.num_levels}


def _vision_layout(config: Qwen3VLConfig) -> Iterator[TensorSpec]:
    """Yield the tensors of the vision tower, first used first."""
    vision, token_width = config.vision, config.language.width
    width, patch = vision.width, vision.patch_size
    tower = Section("visual.", "vision")
    shape = (width, 3, vision.temporal_patch_size, patch, patch)
    yield tower.spec("patch_embed.proj.weight", shape, "embedding", "pixels of a patch to a vector")
    yield tower.spec("patch_embed.proj.bias", (width,), "bias", "pixels of a patch to a vector, bias")
    yield tower.spec("pos_embed.weight", (vision.num_positions, width), "embedding", "learned positions, interpolated")
    for layer in range(vision.num_layers):
        block = Section(f"visual.blocks.{layer}.", "vision")
        yield from block.layer_norm("norm1", width, "norm before attention")
        yield from block.linear("attn.qkv", (3 * width, width), "queries, keys, values", kind="linear", bias=True)
        yield from block.linear("attn.proj", (width, width), "attention output", kind="output", bias=True)
        yield from block.layer_norm("norm2", width, "norm before feed-forward")
        yield from block.linear(
            "mlp.linear_fc1", (vision.mlp_width, width), "feed-forward in", kind="linear", bias=True
        )
        yield from block.linear(
            "mlp.linear_fc2", (width, vision.mlp_width), "feed-forward out", kind="output", bias=True
        )
    merged = width * vision.merge_size**2
    yield from _merger("visual.merger.", width, merged, token_width, "visual tokens")
    for level in range(len(vision.deepstack_layers)):
        prefix = f"visual.deepstack_merger_list.{level}."
        yield from _merger(prefix, merged, merged, token_width, "a DeepStack level")


def _merger(prefix: str, norm_width: int, merged: int, token_width: int, role: str) -> Iterator[TensorSpec]:
    section = Section(prefix, "vision")
    yield from section.layer_norm("norm", norm_width, f"norm before {role}")
    yield from section.linear("linear_fc1", (merged, merged), f"patches to {role}, in", kind="linear", bias=True)
    yield from section.linear("linear_fc2", (token_width, merged), f"patches to {role}, out", kind="linear", bias=True)


def _preset(
    *,
    width: int,
    num_layers: int,
    num_heads: int,
    mlp_width: int,
    tied_embeddings: bool,
    vision: Qwen3VisionConfig,
) -> Qwen3VLConfig:
    """Return the configuration of a released size.

    The arguments are the fields in which the sizes differ.
    """
    return Qwen3VLConfig(
        vision=vision,
        language=LanguageConfig(
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=8,
            head_dim=128,
            mlp_width=mlp_width,
            vocab_size=151_936,
            context_length=262_144,
            rope_theta=5_000_000.0,
            qk_norm=True,
            tied_embeddings=tied_embeddings,
            mrope_section=(24, 20, 20),
            num_deepstack_levels=3,
            eos_token_ids=(151_645, 151_643),
        ),
    )


QWEN3_VL_PRESETS = {
    "qwen3-vl-2b-instruct": _preset(
        width=2048, num_layers=28, num_heads=16, mlp_width=6144, tied_embeddings=True, vision=Qwen3VisionConfig()
    ),
    "qwen3-vl-4b-instruct": _preset(
        width=2560, num_layers=36, num_heads=32, mlp_width=9728, tied_embeddings=True, vision=Qwen3VisionConfig()
    ),
    "qwen3-vl-8b-instruct": _preset(
        width=4096,
        num_layers=36,
        num_heads=32,
        mlp_width=12_288,
        tied_embeddings=False,
        vision=Qwen3VisionConfig(width=1152, num_layers=27, mlp_width=4304, deepstack_layers=(8, 16, 24)),
    ),
}
