"""Choose the attention of decoding sequences, by measurement."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Literal

import structlog
import torch
from torch import Tensor

from language_service.kernels.decode_attention import ChunkAttention, DecodeAttention, GatheredAttention
from language_service.kernels.trial import gives_right_numbers

# Letters as in `decode_attention`

AttentionName = Literal["auto", "torch", "triton"]

_log = structlog.get_logger()

_SHAPES = ((1, 2048), (8, 1024), (32, 512))  # sequences and cached tokens of each
_MAX_ERROR = 2e-2  # of the norm. Rounding to bfloat16 makes errors near 4e-3.
_ROUNDS = 5
_CALLS = 20  # per round, so that the clock's resolution does not matter


def choose_decode_attention(name: AttentionName, kv: Tensor, num_heads: int) -> DecodeAttention:
    """Return attention for decoding over a cache.

    'auto' measures all kinds that give the right numbers on this GPU, and takes the fastest. On a CPU it is 'torch'.

    Args:
        name: the setting `--decode-attention`.
        kv: the cache, [layers, 2, P, S, G, E]. It is not changed.
        num_heads: H.

    Raises:
        ValueError: the named kind cannot run here.
    """
    if name == "torch" or (name == "auto" and kv.device.type != "cuda"):
        return GatheredAttention()
    triton, problem = _open_triton(kv)
    if name == "triton":
        if triton is None:
            raise ValueError(problem)
        return triton
    if triton is None:
        _log.info("decode attention not measured", reason=problem)
        return GatheredAttention()
    return fastest([GatheredAttention(), triton], kv, num_heads)


def choose_chunk_attention(decode: DecodeAttention, kv: Tensor, num_heads: int) -> ChunkAttention | None:
    """Return attention for all chunks of a step.

    It takes one launch a layer. None if decoding does not use Triton, or if the kernel fails or gives other numbers
    here. Then torch computes them.

    Args:
        decode: the chosen attention for decoding.
        kv: as in `choose_decode_attention`.
        num_heads: H.
    """
    if decode.name != "triton":
        return None
    from language_service.kernels.triton_chunks import TritonChunkAttention

    attention = TritonChunkAttention(kv, num_heads)
    error = partial(chunk_error, attention, kv, num_heads)
    return attention if gives_right_numbers("chunk attention", error, _MAX_ERROR) else None


def chunk_error(attention: ChunkAttention, kv: Tensor, num_heads: int) -> float:
    """Return the norm of the error, relative to float32's result.

    The tokens of a chunk are compared with decoding sequences that see as much.
    """
    q_THE, kv_2PSGE, tables, _ = make_inputs(kv, num_heads, 2 * attention.num_tokens + 3, 4 * attention.num_tokens)
    num_tokens, first = attention.num_tokens, 5  # position of the first token
    counts = [num_tokens, num_tokens, 2, 1]
    starts = [first, first + num_tokens, first + 2 * num_tokens, 0]
    rows = [0, num_tokens, 2 * num_tokens, 2 * num_tokens + 2]
    tiles = [[int(start == 0), row, start, count] for row, start, count in zip(rows, starts, counts, strict=True)]
    found = attention.plan(tables, torch.tensor([*tiles, [0, 0, 0, 0]], device=kv.device))(q_THE, kv_2PSGE).float()
    tables = torch.cat([tables[:1].expand(len(q_THE) - 1, -1), tables[1:2]])
    lengths = torch.tensor([*range(first + 1, first + len(q_THE)), 1], device=kv.device)
    expected = GatheredAttention().plan(tables, lengths)(q_THE.float(), kv_2PSGE.float())
    return float((found - expected).norm() / expected.norm())


def fastest(kinds: Sequence[DecodeAttention], kv: Tensor, num_heads: int) -> DecodeAttention:
    """Return the fastest of `kinds` over a few shapes.

    Args:
        kinds: the first one is the reference. A kind that fails or whose numbers differ is not taken.
        kv: as in `choose_decode_attention`.
        num_heads: H.
    """
    seconds: dict[str, float] = {}
    for kind in kinds:
        try:
            seconds[kind.name] = _total_s(kind, kv, num_heads)
        except Exception as problem:  # a compiler or driver can fail in many ways. The reference remains.
            _log.warning("decode attention not used", kind=kind.name, reason=str(problem)[:500])
    if kv.device.type == "cuda":
        torch.cuda.empty_cache()  # the inputs took memory that others may need
    best = min(kinds, key=lambda kind: seconds.get(kind.name, math.inf))
    times_us = {name: round(1e6 * each, 1) for name, each in seconds.items()}
    _log.info("decode attention chosen", kind=best.name, microseconds=times_us)
    return best


def _total_s(kind: DecodeAttention, kv: Tensor, num_heads: int) -> float:
    """Return the time of one call at each shape, together.

    Raises:
        ValueError: its numbers differ from the reference.
    """
    total_s = 0.0
    for num_sequences, length in _SHAPES:
        q_NHE, kv_2PSGE, tables, lengths = make_inputs(kv, num_heads, num_sequences, length)
        error = relative_error(kind, q_NHE, kv_2PSGE, tables, lengths)
        if not error < _MAX_ERROR:  # also if it is not a number
            raise ValueError(f"its numbers differ by {error:.2g}")
        attend = partial(kind.plan(tables, lengths), q_NHE, kv_2PSGE)
        total_s += median_s(attend, kv.device)
    return total_s


def make_inputs(kv: Tensor, num_heads: int, num_sequences: int, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return queries, one layer of a cache, tables and lengths.

    The random layer has the cache's type and block size, and a block of its own for each part of a sequence, unless
    the cache is smaller.
    """
    _, _, max_blocks, block_size, num_kv_heads, head_dim = kv.shape
    generator = torch.Generator(kv.device).manual_seed(0)
    table_width = -(-length // block_size)
    num_blocks = min(max_blocks, num_sequences * table_width)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=kv.dtype, device=kv.device, generator=generator)

    tables = torch.randperm(num_sequences * table_width, device=kv.device, generator=generator) % num_blocks
    lengths = length - torch.arange(num_sequences, device=kv.device) % block_size
    return (
        random(num_sequences, num_heads, head_dim),
        random(2, num_blocks, block_size, num_kv_heads, head_dim),
        tables.view(num_sequences, table_width),
        lengths,
    )


def relative_error(kind: DecodeAttention, q_NHE: Tensor, kv_2PSGE: Tensor, tables: Tensor, lengths: Tensor) -> float:
    """Return the norm of the error, relative to float32's result."""
    expected = GatheredAttention().plan(tables, lengths)(q_NHE.float(), kv_2PSGE.float())
    found = kind.plan(tables, lengths)(q_NHE, kv_2PSGE).float()
    return float((found - expected).norm() / expected.norm())


def median_s(work: Callable[[], object], device: torch.device) -> float:
    """Return the time of one call, seconds.

    It is the median of several rounds, without the first. On a GPU the calls are replayed as a CUDA graph, as in
    serving. So the time to launch kernels does not count.
    """
    run = _recorded(work, device) if device.type == "cuda" else lambda: [work() for _ in range(_CALLS)]
    samples = []
    for _ in range(_ROUNDS + 1):
        start_s = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        samples.append((time.perf_counter() - start_s) / _CALLS)
    return statistics.median(samples[1:])


def _recorded(work: Callable[[], object], device: torch.device) -> Callable[[], object]:
    with torch.cuda.device(device):
        work()  # compiles kernels and allocates their memory, which cannot be recorded
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            for _ in range(_CALLS):
                work()
    return graph.replay


def _open_triton(kv: Tensor) -> tuple[DecodeAttention | None, str]:
    """Return attention in Triton, or None and the reason."""
    if find_spec("triton") is None:
        return None, "Triton is not installed, choose --decode-attention torch."
    from language_service.kernels.triton_attention import TritonAttention, supports

    if not supports(kv.shape[-1], kv.dtype):
        return None, f"Triton's attention does not take heads of {kv.shape[-1]}, choose --decode-attention torch."
    on_gpu = kv.device.type == "cuda"
    return TritonAttention(torch.cuda.get_device_properties(kv.device).multi_processor_count if on_gpu else 1), ""
