"""Measure each attention kernel that is at hand.

A kernel that cannot run here, or is not installed, loses its own rows only.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from benchmarks.gpu_check.limits import matmul_peak, median_s, memory_bandwidth, recorded
from benchmarks.gpu_check.rows import RowWriter
from benchmarks.gpu_check.sizes import Sizes
from language_service.kernels import GatheredAttention, choose_decode_attention
from language_service.kernels.decode_choice import make_inputs

# N sequences, L new tokens, C cached positions, P blocks of S positions, H query heads, G key-value heads, E head dim

_CALLS = 10  # in one CUDA graph
_BLOCK_SIZE = 16

Call = Callable[[], Tensor]  # returns the output [N, H, E] or [L, H, E]
# Makes the call of a kernel from queries, a layer of the cache, tables and lengths.
Kind = Callable[[Sizes, Tensor, Tensor, Tensor, Tensor], Call]


def run(sizes: Sizes, rows: RowWriter) -> None:
    """Report each kernel's error, time and share of the limits."""
    bandwidth = memory_bandwidth(sizes.device, sizes.bandwidth_bytes)
    rows.add("memory bandwidth", bandwidth / 1e9, "GB/s")
    heads, kv_heads, head_dim = sizes.attention_heads
    max_blocks = max(count * -(-length // _BLOCK_SIZE) for count, length in sizes.decode_shapes)
    kv = torch.empty(1, 2, max_blocks, _BLOCK_SIZE, kv_heads, head_dim, dtype=sizes.dtype, device=sizes.device)
    chosen = choose_decode_attention("auto", kv, heads)
    rows.absent("attention that a language service chooses here", chosen.name)
    _measure_prefill(sizes, rows)
    # Kernel by kernel: one that breaks the process' CUDA context loses the rows of those after it only.
    for name, kind in DECODE_KINDS.items():
        for count, length in sizes.decode_shapes:
            inputs = make_inputs(kv, heads, count, length)
            expected = GatheredAttention().plan(*inputs[2:])(inputs[0].float(), inputs[1].float())
            limit_s = float(inputs[3].sum()) * 2 * kv_heads * head_dim * sizes.dtype.itemsize / bandwidth
            _measure(
                sizes, rows, f"decode, {count} x {length}, {name}", partial(kind, sizes, *inputs), expected, limit_s
            )


@torch.inference_mode()
def _measure(
    sizes: Sizes, rows: RowWriter, title: str, make: Callable[[], Call], expected: Tensor, limit_s: float
) -> None:
    """Add the rows of one kernel.

    `limit_s` is the least possible time.
    """
    try:
        call = make()
        error = float((call().float() - expected).norm() / expected.norm())
        seconds = median_s(recorded(call, sizes.device, _CALLS), sizes.device) / _CALLS
    except Exception as problem:  # kernels and compilers fail in many ways
        rows.absent(title, f"cannot run here: {type(problem).__name__}: {str(problem)[:300]}")
        return
    rows.add(title, 1e6 * seconds, "us", note=f"{100 * limit_s / seconds:.0f} % of the limit")
    rows.at_most(f"{title}, error", error, "of the norm", 2e-2)


def _gathered(_sizes: Sizes, q: Tensor, kv: Tensor, tables: Tensor, lengths: Tensor) -> Call:
    attend = GatheredAttention().plan(tables, lengths)
    return lambda: attend(q, kv)


def _triton(sizes: Sizes, q: Tensor, kv: Tensor, tables: Tensor, lengths: Tensor) -> Call:
    attention = choose_decode_attention("triton", kv[None], q.shape[1])
    attend = attention.plan(tables, lengths)
    return lambda: attend(q, kv)


def _flex(sizes: Sizes, q: Tensor, kv: Tensor, tables: Tensor, lengths: Tensor) -> Call:
    """FlexAttention over gathered blocks. Masks by length."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    num_positions = tables.shape[1] * kv.shape[2]

    def is_cached(sequence: Tensor, _head: Tensor, _query: Tensor, position: Tensor) -> Tensor:
        return position < lengths[sequence]

    mask = create_block_mask(is_cached, len(q), None, 1, num_positions, device=str(q.device))
    attend = torch.compile(flex_attention, dynamic=False) if sizes.compiles else flex_attention

    def call() -> Tensor:
        k_NGCE, v_NGCE = kv[:, tables].flatten(2, 3).transpose(2, 3)
        out: Tensor = attend(q[:, :, None], k_NGCE, v_NGCE, block_mask=mask, enable_gqa=True)
        return out[:, :, 0]

    return call


def _varlen(_sizes: Sizes, q: Tensor, kv: Tensor, tables: Tensor, lengths: Tensor) -> Call:
    """Torch's own attention over block tables, in newer releases."""
    from torch.nn.attention.varlen import varlen_attn

    starts = torch.arange(len(q) + 1, dtype=torch.int32, device=q.device)
    tables, lengths = tables.int(), lengths.int()
    longest = tables.shape[1] * kv.shape[2]

    def call() -> Tensor:
        out = varlen_attn(
            q, kv[0], kv[1], starts, None, 1, longest, seqused_k=lengths, block_table=tables, enable_gqa=True
        )
        return out if isinstance(out, Tensor) else out[0]

    return call


DECODE_KINDS: Mapping[str, Kind] = {
    "torch, gathered blocks": _gathered,
    "Triton, blocks in place": _triton,
    "FlexAttention, gathered blocks": _flex,
    "torch varlen_attn, blocks in place": _varlen,
}


def _measure_prefill(sizes: Sizes, rows: RowWriter) -> None:
    """Measure causal attention of the last L of C positions."""
    heads, kv_heads, head_dim = sizes.attention_heads
    peak = matmul_peak(sizes.device, sizes.dtype, sizes.matmul_side)
    rows.add("matrix peak", peak / 1e12, "TFLOP/s")
    for new, cached in sizes.prefill_shapes:
        shapes = ((heads, new), (kv_heads, cached), (kv_heads, cached))
        q, k, v = (torch.randn(1, *shape, head_dim, device=sizes.device, dtype=sizes.dtype) for shape in shapes)
        hidden = torch.ones(new, cached, dtype=torch.bool, device=sizes.device).triu(cached - new + 1)
        mask = torch.zeros(new, cached, dtype=sizes.dtype, device=sizes.device).masked_fill(hidden, float("-inf"))
        pairs = new * cached - new * (new - 1) / 2  # of a query and a key that it sees
        limit_s = 4 * pairs * heads * head_dim / peak
        expected = _attend(q.float(), k.float(), v.float(), mask.float())
        for name, bias in (("explicit mask", mask), ("causal, flash", causal_lower_right(new, cached))):
            title = f"prefill, {new} of {cached}, {name}"
            call = partial(_attend, q, k, v, bias)
            _measure(sizes, rows, title, partial(_same, call), expected, limit_s)


def _same(call: Call) -> Call:
    return call


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
