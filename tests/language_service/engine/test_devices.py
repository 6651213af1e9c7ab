"""A step makes its tensors where the model is.

The meta device stands for a GPU: it computes nothing, and is not the processor.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from language_service.engine.cuda_graphs import RecordedSteps
from language_service.engine.kv_cache import CacheConfig, PagedCache, Span
from language_service.engine.runner import Piece, PlacedImage, Runner
from language_service.engine.serving import ServingDecoder
from tests.language_service.small import CONFIG, make_decoder, make_image
from tests.language_service.watching import Watching

META = torch.device("meta")
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


def check_device(func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """Fail where an operation, other than one that moves, was given a tensor that lies elsewhere than the model."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    devices = {tensor.device.type for tensor in tensors}
    assert func in _MOVES or len(devices) < 2, (func, devices)


def make_parts() -> tuple[ServingDecoder, PagedCache]:
    tensors = {name: tensor.to(META) for name, tensor in make_decoder(CONFIG).state_dict().items()}
    cache = PagedCache(CONFIG, CacheConfig(num_blocks=16, block_size=4), dtype=torch.float32, device=META)
    return ServingDecoder(CONFIG, tensors), cache


def test_a_mixed_step_stays_on_the_models_device() -> None:
    """Part of a prompt with an image, a guess, and a token of another answer."""
    runner = Runner(*make_parts())
    images = [PlacedImage(1, make_image(1), bytes(32))]
    pieces = [
        Piece(start=0, token_ids=[5, 0, 0, 0, 0, 0, 6], blocks=[3, 4], samples=False, images=images),
        Piece(start=9, token_ids=[7, 8], blocks=[5, 6, 7], samples=True, num_drafts=1),
        Piece(start=4, token_ids=[9], blocks=[8, 9], samples=True),
    ]
    with Watching(check_device):
        logits_BV = runner.forward(pieces, [3, 4])
    assert (logits_BV.device, logits_BV.shape) == (META, (3, CONFIG.vocab_size))


@torch.inference_mode()
def test_a_recorded_step_stays_on_the_models_device() -> None:
    with Watching(check_device):
        logits_BV = RecordedSteps(*make_parts(), lambda run: run).forward(
            [5, 6], [Span(4, 1, [1, 2]), Span(5, 1, [3, 4])]
        )
    assert logits_BV is not None
    assert (logits_BV.device, logits_BV.shape) == (META, (2, CONFIG.vocab_size))
