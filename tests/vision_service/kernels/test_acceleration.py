"""Faster arithmetic in bfloat16, compared with the same in torch."""

import copy

import pytest
import torch
from torch import Tensor

from checkpoint.families import ModelConfig
from checkpoint.presets import RESAMPLER_PRESETS
from processing import open_image_processor
from tests.processing.image_zoo import IMAGES
from tests.vision_service.model.test_qwen3_vl import CONFIG
from vision_service.kernels import accelerate, acceleration
from vision_service.kernels.acceleration import OneDnnLinear, without_positions
from vision_service.kernels.native_attention import open_native_attention
from vision_service.model import build_vision_model, vit
from vision_service.model.qwen3_vl import attend

NATIVE = open_native_attention()
RESAMPLER = RESAMPLER_PRESETS["tiny"]
needs_native = pytest.mark.skipif(NATIVE is None, reason="the compiled attention cannot be used here")


def inputs(num_patches: int, num_heads: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return random queries, keys, values, cosines and sines."""
    generator = torch.Generator().manual_seed(num_patches)
    qkv_P3HE = torch.randn(num_patches, 3, num_heads, head_dim, generator=generator) * 2
    angles_P1F = torch.rand(num_patches, 1, head_dim // 2, generator=generator) * 6
    return qkv_P3HE.bfloat16(), angles_P1F.cos(), angles_P1F.sin()


@needs_native
@pytest.mark.parametrize("lengths", [[4], [64], [100, 4, 784], [48, 65, 128]], ids=str)
@pytest.mark.parametrize(("num_heads", "head_dim"), [(2, 64), (3, 72), (4, 16), (1, 128)])
def test_compiled_attention_is_as_exact_as_torchs(lengths: list[int], num_heads: int, head_dim: int) -> None:
    assert NATIVE is not None
    qkv_P3HE, cos_P1F, sin_P1F = inputs(sum(lengths), num_heads, head_dim)
    exact = attend(qkv_P3HE.float(), cos_P1F, sin_P1F, lengths)
    by_torch = attend(qkv_P3HE, cos_P1F, sin_P1F, lengths).float()
    compiled = NATIVE(qkv_P3HE, cos_P1F, sin_P1F, lengths).float()
    assert (compiled - exact).square().mean() <= 1.05 * (by_torch - exact).square().mean()
    assert (compiled - exact).abs().max() <= 1.5 * (by_torch - exact).abs().max()


@needs_native
def test_an_images_attention_does_not_depend_on_its_batch() -> None:
    assert NATIVE is not None
    qkv_P3HE, cos_P1F, sin_P1F = inputs(300, 2, 64)
    together = NATIVE(qkv_P3HE, cos_P1F, sin_P1F, [100, 200])
    alone = NATIVE(qkv_P3HE[100:], cos_P1F[100:], sin_P1F[100:], [200])
    assert torch.equal(together[100:], alone)


@needs_native
def test_attention_without_positions_is_as_exact_as_torchs() -> None:
    assert NATIVE is not None
    qkv_P3HE, _, _ = inputs(3 * 64, 2, 64)
    qkv_BN3HE = qkv_P3HE.view(3, 64, 3, 2, 64)
    exact = vit.attend(qkv_BN3HE.float())
    by_torch, compiled = vit.attend(qkv_BN3HE).float(), without_positions(NATIVE)(qkv_BN3HE).float()
    assert compiled.shape == exact.shape == (3, 64, 128)
    assert (compiled - exact).square().mean() <= 1.05 * (by_torch - exact).square().mean()


@pytest.mark.parametrize("multiplies_bfloat16", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize(("config", "num_linear"), [(CONFIG, 4 * 4 + 2 * 4), (RESAMPLER, 2 * 4 + 5 + 1)])
@torch.no_grad()
def test_an_accelerated_model_gives_the_same_tokens(
    config: ModelConfig, num_linear: int, multiplies_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processors without products of bfloat16 multiply in float32."""
    if multiplies_bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no products of bfloat16")
    if not multiplies_bfloat16:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
        monkeypatch.setattr(acceleration, "open_native_attention", lambda: None)
    torch.manual_seed(0)
    half = build_vision_model(config).eval()
    for parameter in half.parameters():
        parameter.normal_(0, 0.05)
    processor = open_image_processor(config, max_pixels=512 * 512)
    images = [torch.from_numpy(processor.to_pixels(image)) for image in IMAGES.values()]
    exact = torch.cat(half.encode(images))
    half.bfloat16()
    plain = torch.cat(half.encode([image.bfloat16() for image in images])).float()
    fast = copy.deepcopy(half)
    accelerate(fast)
    tokens = torch.cat(fast.encode([image.bfloat16() for image in images])).float()
    assert (tokens - exact).square().mean() <= 1.1 * (plain - exact).square().mean()
    assert sum(isinstance(module, OneDnnLinear) for module in fast.modules()) == num_linear
