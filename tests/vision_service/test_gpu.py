"""Visual tokens of a GPU equal those of the CPU."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from checkpoint.families import layout
from checkpoint.initial import RandomTensors
from checkpoint.presets import PRESETS, RESAMPLER_PRESETS
from processing import open_image_processor
from tests.processing.image_zoo import IMAGES
from vision_service.backends.torch_backend import TorchBackend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
]


def encode(preset: str, dtype: torch.dtype, device: str) -> list[NDArray[Any]]:
    """Return the visual tokens of four images in one batch."""
    config = PRESETS[preset]
    weights = RandomTensors(config, seed=0, dtype=torch.float32)
    tensors = {spec.name: weights[spec.name].to(device, dtype) for spec in layout(config) if spec.half == "vision"}
    backend = TorchBackend(config, tensors, dtype=dtype, device=torch.device(device))
    processor = open_image_processor(config, max_pixels=2**17)
    images = [processor.to_pixels(IMAGES[name].convert("RGB")) for name in ("square", "photo", "tiny", "very wide")]
    tokens = backend.encode(images)
    return [torch.from_numpy(each).view(torch.bfloat16).float().numpy() for each in tokens]


@pytest.mark.parametrize("preset", ["tiny", "tiny-qwen3-vl"])
@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-2), (torch.bfloat16, 5e-2)])
def test_visual_tokens_equal_those_of_the_cpu(preset: str, dtype: torch.dtype, most: float) -> None:
    """Visual tokens are rounded to bfloat16 in both cases."""
    for found, expected in zip(encode(preset, dtype, "cuda:0"), encode(preset, torch.float32, "cpu"), strict=True):
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) < most * np.linalg.norm(expected)


@pytest.mark.parametrize("count", [1, 3, 16, 20])
def test_recorded_batches_of_every_size_equal_single_images(count: int) -> None:
    """Each is encoded twice: while it is recorded, and replayed."""
    config, device = RESAMPLER_PRESETS["tiny"], torch.device("cuda:0")
    weights = RandomTensors(config, seed=0, dtype=torch.float32)
    tensors = {spec.name: weights[spec.name].to(device) for spec in layout(config) if spec.half == "vision"}
    backend = TorchBackend(config, tensors, dtype=torch.float32, device=device)
    generator = np.random.default_rng(0)
    side = config.vision.image_size
    images = [generator.normal(size=(3, side, side)).astype(np.float32) for _ in range(count)]
    expected = [backend.encode([image])[0] for image in images]
    for _ in range(2):
        for found, wanted in zip(backend.encode(images), expected, strict=True):
            numbers = [torch.from_numpy(each).view(torch.bfloat16).float() for each in (found, wanted)]
            torch.testing.assert_close(numbers[0], numbers[1], rtol=2e-2, atol=2e-2)
