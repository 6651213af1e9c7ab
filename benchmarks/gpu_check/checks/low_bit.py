"""Check and time decoders with 8 or 4 bits a weight.

No kernel of ours computes them on a GPU: torch converts the weights in each step. So they save memory there, and the
time is reported without an aim.
"""

from collections.abc import Mapping
from typing import get_args

import torch
from torch import Tensor

from benchmarks.gpu_check.limits import median_s
from benchmarks.gpu_check.models import decoder_tensors, low_bit, varied
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from checkpoint.families import LanguageConfig, Scheme
from language_service.engine.kv_cache import CacheConfig, PagedCache
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.scheduling import Chunk
from language_service.scheduling import Sequence as ScheduledSequence

_BLOCK_SIZE, _NUM_BLOCKS = 16, 4
_NUM_TOKENS = 40
_MAX_ERROR = 0.02  # an activation at the border of two integers may be rounded to either


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report errors against the CPU, sizes and step times."""
    small = varied(decoder_tensors(sizes.small, dtype=torch.float32, device=torch.device("cpu")))
    name, shape = next(iter(sizes.decoders.items()))
    large = decoder_tensors(shape, dtype=sizes.dtype, device=sizes.device)
    _time(sizes, rows, name, "no", shape, large)
    for scheme in get_args(Scheme):
        _compare(sizes, rows, scheme, small)
        _time(sizes, rows, name, scheme, *low_bit(shape, large, scheme))


def _compare(sizes: Sizes, rows: RowWriter, scheme: Scheme, tensors: Mapping[str, Tensor]) -> None:
    """Compare the logits of a prompt with the CPU's."""
    config, rounded = low_bit(sizes.small, tensors, scheme)
    expected, found = (_logits(_runner(config, rounded, device)) for device in (torch.device("cpu"), sizes.device))
    error = float((found - expected).norm() / expected.norm())
    rows.at_most(f"{scheme}, error of logits", error, "of their norm", _MAX_ERROR)


def _time(
    sizes: Sizes, rows: RowWriter, name: str, scheme: str, config: LanguageConfig, tensors: Mapping[str, Tensor]
) -> None:
    """Time a step that decodes one sequence."""
    runner = _runner(config, tensors, sizes.device)
    chunk = _chunk(_NUM_TOKENS, [7])
    seconds = median_s(lambda: runner.forward([chunk], []).argmax(-1).cpu(), sizes.device, sizes.steps)
    size = f"{runner.description.num_weight_bytes / 2**20:.3g} MiB of weights"
    rows.add(f"{name}, {scheme} scheme, decode of 1 sequence", 1 / seconds, "tokens/s", note=size)


def _runner(config: LanguageConfig, tensors: Mapping[str, Tensor], device: torch.device) -> Runner:
    on_device = {name: tensor.to(device) for name, tensor in tensors.items()}
    decoder = ServingDecoder(config, on_device)
    shape = CacheConfig(num_blocks=_NUM_BLOCKS, block_size=_BLOCK_SIZE)
    return Runner(decoder, PagedCache(config, shape, dtype=decoder.dtype, device=device))


def _logits(runner: Runner) -> Tensor:
    token_ids = [number % runner.decoder.config.vocab_size for number in range(3, 3 + _NUM_TOKENS)]
    return runner.forward([_chunk(0, token_ids)], []).float().cpu()


def _chunk(start: int, token_ids: list[int]) -> Chunk:
    blocks = list(range(_NUM_BLOCKS))
    return Chunk(sequence=ScheduledSequence(), start=start, token_ids=token_ids, blocks=blocks, samples=True)
