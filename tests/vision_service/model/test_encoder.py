"""The vision half equals a slow, simple reference in float64."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from checkpoint.families import ResamplerConfig, ResamplerModelConfig, VisionConfig, layout
from checkpoint.presets import RESAMPLER_PRESETS
from vision_service.model.encoder import VisionHalf
from vision_service.model.positions import sincos_1d, sincos_2d

Array = NDArray[np.float64]

TINY = RESAMPLER_PRESETS["tiny"]
SMALL_VISION = VisionConfig(image_size=24, patch_size=4, width=16, num_layers=2, num_heads=2, mlp_width=24)
VARIANTS: dict[str, ResamplerModelConfig] = {
    "perceiver": TINY.model_copy(
        update={
            "vision": SMALL_VISION,
            # Heads times head dim differs from the width, so that no code can confuse them.
            "resampler": ResamplerConfig(num_queries=5, num_layers=2, num_heads=3, head_dim=4, mlp_width=20),
        }
    ),
    "biases": TINY.model_copy(
        update={"vision": SMALL_VISION.model_copy(update={"linear_bias": True, "pool_size": 3})},
    ),
    "direct": TINY.model_copy(
        update={
            "vision": SMALL_VISION.model_copy(update={"positions": "sincos_2d", "pool_size": 1}),
            "resampler": ResamplerConfig(kind="none"),
        }
    ),
    "sincos_1d": TINY.model_copy(
        update={
            "vision": SMALL_VISION.model_copy(update={"positions": "sincos_1d"}),
            "resampler": ResamplerConfig(kind="none"),
        }
    ),
}


def random_half(config: ResamplerModelConfig) -> VisionHalf:
    """Return a half with random parameters, including norms and biases."""
    torch.manual_seed(0)
    half = VisionHalf(config)
    for parameter in half.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return half


def softmax(scores: Array) -> Array:
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(powers / powers.sum(-1, keepdims=True))


def gelu(x: Array) -> Array:
    return np.asarray(0.5 * x * (1 + torch.erf(torch.from_numpy(x) / 2**0.5).numpy()))


class Reference:
    """Encodes an image one head and position at a time."""

    def __init__(self, config: ResamplerModelConfig, weights: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = {name: tensor.double().numpy() for name, tensor in weights.items()}

    def linear(self, name: str, x: Array) -> Array:
        return np.asarray(x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0))

    def norm(self, name: str, x: Array, eps: float) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
        return np.asarray(scaled * self.weights[f"{name}.weight"] + self.weights.get(f"{name}.bias", 0))

    def mlp(self, name: str, x: Array) -> Array:
        return self.linear(f"{name}.fc2", gelu(self.linear(f"{name}.fc1", x)))

    def attention(self, q: Array, k: Array, v: Array, num_heads: int) -> Array:
        head_dim = q.shape[-1] // num_heads
        out = np.zeros((len(q), q.shape[-1]))
        for head in range(num_heads):
            part = slice(head * head_dim, (head + 1) * head_dim)
            out[:, part] = softmax(q[:, part] @ k[:, part].T / np.sqrt(head_dim)) @ v[:, part]
        return out

    def patches(self, pixels: Array) -> Array:
        vision = self.config.vision
        size, rows = vision.patch_size, []
        for row in range(vision.grid_size):
            for column in range(vision.grid_size):
                patch = pixels[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
                weight = self.weights["vision_tower.patch_embed.proj.weight"]
                bias = self.weights.get("vision_tower.patch_embed.proj.bias", 0)
                rows.append((weight * patch).sum((1, 2, 3)) + bias + self.position(row, column))
        return np.stack(rows)

    def position(self, row: int, column: int) -> Array:
        vision = self.config.vision
        index, width = row * vision.grid_size + column, vision.width
        if vision.positions == "learned":
            return np.asarray(self.weights["vision_tower.pos_embed"][0, index])
        if vision.positions == "sincos_1d":
            angles = [index / 10000 ** (2 * (i // 2) / width) for i in range(width)]
            return np.array([np.cos(a) if i % 2 else np.sin(a) for i, a in enumerate(angles)])
        quarter = width // 4
        frequencies = [1 / 10000 ** (i / quarter) for i in range(quarter)]
        return np.array([f(axis * w) for axis in (column, row) for f in (np.sin, np.cos) for w in frequencies])

    def pool(self, x: Array) -> Array:
        vision, pooled = self.config.vision, []
        for top in range(0, vision.grid_size, vision.pool_size):
            for left in range(0, vision.grid_size, vision.pool_size):
                window = [
                    x[(top + down) * vision.grid_size + left + right]
                    for down in range(vision.pool_size)
                    for right in range(vision.pool_size)
                ]
                pooled.append(np.mean(window, axis=0))
        return np.stack(pooled)

    def encode(self, pixels: Array) -> Array:
        vision, resampler = self.config.vision, self.config.resampler
        x = self.patches(pixels)
        for layer in range(vision.num_layers):
            block = f"vision_tower.blocks.{layer}"
            q, k, v = np.split(self.linear(f"{block}.attn.qkv", self.norm(f"{block}.norm1", x, vision.norm_eps)), 3, -1)
            x = x + self.linear(f"{block}.attn.proj", self.attention(q, k, v, vision.num_heads))
            x = x + self.mlp(f"{block}.mlp", self.norm(f"{block}.norm2", x, vision.norm_eps))
        x = self.pool(self.norm("vision_tower.norm", x, vision.norm_eps))
        if resampler.kind == "none":
            return self.linear("vision_projection", x)
        latents, eps = self.weights["perceiver_resampler.query"], resampler.norm_eps
        for layer in range(resampler.num_layers):
            block = f"perceiver_resampler.layers.{layer}"
            queries = self.norm(f"{block}.norm_latents", latents, eps)
            context = np.concatenate([self.norm(f"{block}.norm_patches", x, eps), queries])
            k, v = np.split(self.linear(f"{block}.cross_attn.to_kv", context), 2, -1)
            out = self.attention(self.linear(f"{block}.cross_attn.to_q", queries), k, v, resampler.num_heads)
            latents = latents + self.linear(f"{block}.cross_attn.to_out", out)
            latents = latents + self.mlp(f"{block}.mlp", self.norm(f"{block}.norm_mlp", latents, eps))
        return self.linear("perceiver_resampler.proj", self.norm("perceiver_resampler.norm", latents, eps))


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_equals_the_slow_reference(name: str) -> None:
    config = VARIANTS[name]
    half = random_half(config)
    side = config.vision.image_size
    pixels = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        tokens = half(pixels)
    reference = Reference(config, half.state_dict())
    expected = np.stack([reference.encode(image) for image in pixels.double().numpy()])
    assert tokens.shape == (2, config.num_visual_tokens, config.language.width)
    np.testing.assert_allclose(tokens.numpy(), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize(
    "config", [*RESAMPLER_PRESETS.values(), *VARIANTS.values()], ids=[*RESAMPLER_PRESETS, *VARIANTS]
)
def test_parameters_match_the_checkpoint_layout(config: ResamplerModelConfig) -> None:
    """Checkpoints are written and checked by this layout."""
    with torch.device("meta"):
        half = VisionHalf(config)
    expected = {spec.name: spec.shape for spec in layout(config) if spec.half == "vision"}
    assert {name: tuple(tensor.shape) for name, tensor in half.state_dict().items()} == expected


def test_computed_positions_are_real_on_the_meta_device() -> None:
    """No checkpoint contains them, so they are never loaded later."""
    with torch.device("meta"):
        half = VisionHalf(RESAMPLER_PRESETS["qwen3-vl-8b-direct"])
    assert half.vision_tower.pos_embed.device.type == "cpu"


def test_every_patch_has_a_distinct_position() -> None:
    for table in (sincos_1d(196, 64), sincos_2d(14, 64)):
        assert table.shape == (196, 64)
        assert len(torch.unique(table, dim=0)) == 196


def test_initial_weights_can_be_trained() -> None:
    """Every parameter gets a gradient."""
    config = RESAMPLER_PRESETS["tiny"]
    torch.manual_seed(0)
    half = VisionHalf(config)
    half.reset_parameters()
    tokens = half(torch.randn(2, 3, config.vision.image_size, config.vision.image_size))
    tokens.square().mean().backward()
    assert 0.01 < tokens.std().item() < 0.04
    for name, parameter in half.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
