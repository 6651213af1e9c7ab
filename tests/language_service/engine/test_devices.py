"""A step makes its tensors on the model's device.

The meta device stands in for a GPU. It computes nothing, but it is not the CPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from checkpoint.families import LanguageConfig
from language_service.engine.cuda_graphs import RecordedSteps
from language_service.engine.kv_cache import CacheConfig, CacheSpan, PagedCache
from language_service.engine.runner import PlacedImage, Runner
from language_service.engine.serving import ServingDecoder
from tests.language_service.operation_spy import OperationSpy
from tests.language_service.small import CONFIG, GRIDS, make_chunk, make_decoder, make_grid_image, make_image

META = torch.device("meta")
_COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def check_device(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Fail if an operation has tensors on two devices.

    Copies may.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    devices = {tensor.device.type for tensor in tensors}
    assert func in _COPIES or len(devices) < 2, (func, devices)


def make_parts(config: LanguageConfig = CONFIG) -> tuple[ServingDecoder, PagedCache]:
    tensors = {name: tensor.to(META) for name, tensor in make_decoder(config).state_dict().items()}
    cache = PagedCache(config, CacheConfig(num_blocks=16, block_size=4), dtype=torch.float32, device=META)
    return ServingDecoder(config, tensors), cache


def test_a_mixed_step_stays_on_the_models_device() -> None:
    """With a prompt, an image, a draft, and another answer."""
    runner = Runner(*make_parts())
    images = [PlacedImage(1, make_image(1))]
    chunks = [
        make_chunk(0, [5, 0, 0, 0, 0, 0, 6], [3, 4], samples=False),
        make_chunk(9, [7, 8], [5, 6, 7], num_drafts=1),
        make_chunk(4, [9], [8, 9]),
    ]
    with OperationSpy(check_device):
        logits_BV = runner.forward(chunks, [3, 4], [images, [], []])
    assert (logits_BV.device, logits_BV.shape) == (META, (3, CONFIG.vocab_size))


def test_levels_and_grids_stay_on_the_models_device() -> None:
    image = make_grid_image(1, 1, 5)
    images = [PlacedImage(1, image.tokens_NX, image.grid)]
    chunks = [make_chunk(0, [5, 0, 0, 0], [3, 4]), make_chunk(6, [9], [8, 9])]
    with OperationSpy(check_device):
        logits_BV = Runner(*make_parts(GRIDS)).forward(chunks, [3, 4], [images, images])
    assert (logits_BV.device, logits_BV.shape) == (META, (2, GRIDS.vocab_size))


@torch.inference_mode()
def test_a_recorded_step_stays_on_the_models_device() -> None:
    with OperationSpy(check_device):
        logits_BV = RecordedSteps(*make_parts(), lambda run: run).forward(
            [5, 6], [CacheSpan(4, 1, [1, 2]), CacheSpan(5, 1, [3, 4])]
        )
    assert logits_BV is not None
    assert (logits_BV.device, logits_BV.shape) == (META, (2, CONFIG.vocab_size))
