"""Visual tokens of a GPU equal those of the CPU."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from checkpoint.families import layout
from checkpoint.initial import RandomTensors
from checkpoint.presets import PRESETS
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
