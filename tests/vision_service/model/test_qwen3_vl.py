"""Qwen3-VL's vision tower against transformers, with small random weights."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLVisionConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionModel

from checkpoint.families import LanguageConfig, Qwen3VisionConfig, Qwen3VLConfig, layout
from processing.resized_images import ResizedImages
from tests.processing.image_zoo import IMAGES
from vision_service.backends.torch_backend import TorchBackend
from vision_service.model import grids, qwen3_vl
from vision_service.model.qwen3_vl import Qwen3VisionHalf

CONFIG = Qwen3VLConfig(
    vision=Qwen3VisionConfig(
        width=64, num_layers=4, num_heads=4, mlp_width=128, deepstack_layers=(0, 1, 3), min_pixels=64 * 64
    ),
    language=LanguageConfig(
        width=96,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        mlp_width=128,
        vocab_size=512,
        mrope_section=(6, 5, 5),
        num_deepstack_levels=3,
        eos_token_ids=(2,),
    ),
)
PROCESSOR = ResizedImages(CONFIG.vision, max_pixels=512 * 512)


@pytest.fixture(scope="module")
def reference() -> Qwen3VLVisionModel:
    torch.manual_seed(0)
    model = Qwen3VLVisionModel(
        Qwen3VLVisionConfig(
            depth=4,
            hidden_size=64,
            intermediate_size=128,
            num_heads=4,
            out_hidden_size=96,
            deepstack_visual_indexes=[0, 1, 3],
        )
    )
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.train(False)
    return model


@pytest.fixture(scope="module")
def half(reference: Qwen3VLVisionModel) -> Qwen3VisionHalf:
    half = Qwen3VisionHalf(CONFIG)
    half.load_state_dict({f"visual.{name}": tensor for name, tensor in reference.state_dict().items()})
    return half.eval()


@torch.no_grad()
def expected(reference: Qwen3VLVisionModel, image: Tensor) -> Tensor:
    """Return the reference's visual tokens, levels side by side."""
    patches = grids.to_patches(image, 16, 2).view(-1, 3, 1, 256).expand(-1, -1, 2, -1).flatten(1)
    grid = torch.tensor([[1, image.shape[1] // 16, image.shape[2] // 16]])
    output = reference(patches, grid_thw=grid)
    return torch.cat([output.pooler_output, *output.deepstack_features], dim=1)


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    return [torch.from_numpy(PROCESSOR.to_pixels(image)) for image in IMAGES.values()]


@torch.no_grad()
def test_visual_tokens_and_levels_equal_the_references(
    reference: Qwen3VLVisionModel, half: Qwen3VisionHalf, images: list[Tensor]
) -> None:
    for image in images:
        [tokens] = half.encode([image])
        torch.testing.assert_close(tokens, expected(reference, image), atol=1e-5, rtol=0)


@torch.no_grad()
def test_images_of_one_batch_do_not_see_each_other(
    reference: Qwen3VLVisionModel, half: Qwen3VisionHalf, images: list[Tensor]
) -> None:
    for image, tokens in zip(images, half.encode(images), strict=True):
        torch.testing.assert_close(tokens, expected(reference, image), atol=1e-5, rtol=0)


GELU = functional.gelu  # before it is patched

FAULTS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "exact GELU in the blocks": lambda patch: patch.setattr(functional, "gelu", lambda x, approximate="none": GELU(x)),
    "tanh GELU in the mergers": lambda patch: patch.setattr(
        functional, "gelu", lambda x, approximate="none": GELU(x, approximate="tanh")
    ),
    "patches in rows": lambda patch: patch.setattr(grids, "in_blocks", lambda grid, _merge: grid.flatten(0, 1)),
    "no rotary positions": lambda patch: patch.setattr(qwen3_vl, "rotate", lambda x, _cos, _sin: x),
}


@pytest.mark.parametrize("fault", FAULTS)
@torch.no_grad()
def test_a_fault_is_seen(
    fault: str,
    reference: Qwen3VLVisionModel,
    half: Qwen3VisionHalf,
    images: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The comparison above would fail with each of these."""
    right = expected(reference, images[0])
    FAULTS[fault](monkeypatch)
    [tokens] = half.encode(images[:1])
    assert (tokens - right).abs().max() > 1e-4


def test_the_layout_has_the_models_tensors(half: Qwen3VisionHalf) -> None:
    specs = {spec.name: spec.shape for spec in layout(CONFIG) if spec.half == "vision"}
    assert specs == {name: tuple(tensor.shape) for name, tensor in half.state_dict().items()}


def test_the_backend_returns_each_images_tokens_in_bfloat16(half: Qwen3VisionHalf, images: list[Tensor]) -> None:
    backend = TorchBackend(CONFIG, half.state_dict(), dtype=torch.float32, device=torch.device("cpu"))
    assert isinstance(half, nn.Module)
    with torch.no_grad():
        alone = half.encode(images)
    for bits, tokens in zip(backend.encode([image.numpy() for image in images]), alone, strict=True):
        floats = (bits.astype(np.uint32) << 16).view(np.float32)
        assert bits.shape == (len(tokens), CONFIG.token_width)
        np.testing.assert_allclose(floats, tokens.numpy(), rtol=2**-8, atol=1e-5)
