"""Low-bit matrices, compared with the library of their format."""

from typing import Any

import pytest
import torch
from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from checkpoint.compressed_tensors import stored_tensors, take_weight
from checkpoint.lowbit import LowBitWeight, join, pack_nibbles, unpack_nibbles

GROUP = 8


def scheme(bits: int, *, symmetric: bool = True, group: int | None = GROUP) -> QuantizationScheme:
    fields: dict[str, Any] = {"strategy": "channel"} if group is None else {"strategy": "group", "group_size": group}
    return QuantizationScheme(
        targets=["Linear"], weights=QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **fields)
    )


def compressed(symmetric: bool) -> dict[str, Tensor]:
    """Return the library's form of a 16 x 24 matrix."""
    torch.manual_seed(0)
    tensors = {"weight": torch.randn(16, 24), "weight_scale": 0.1 + torch.rand(16, 3)}
    if not symmetric:
        tensors["weight_zero_point"] = torch.randint(-8, 8, (16, 3), dtype=torch.int8)
    stored: dict[str, Tensor] = PackedQuantizationCompressor.compress(tensors, scheme(4, symmetric=symmetric))
    return stored


def named(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"mlp.w1.{name}": tensor for name, tensor in tensors.items()}


@given(st.lists(st.integers(-8, 7), min_size=2, max_size=64).filter(lambda row: len(row) % 2 == 0))
def test_nibbles_survive_packing(row: list[int]) -> None:
    values = torch.tensor([row], dtype=torch.int8)
    packed = pack_nibbles(values)
    assert packed[0, 0] == row[0] + 8 + 16 * (row[1] + 8)
    assert torch.equal(unpack_nibbles(packed), values)


@pytest.mark.parametrize("symmetric", [True, False])
def test_four_bits_are_read_as_the_library_reads_them(symmetric: bool) -> None:
    stored = compressed(symmetric)
    expected = PackedQuantizationCompressor.decompress(stored, scheme(4, symmetric=symmetric))["weight"]
    tensors = named(stored)
    weight = take_weight(tensors, "mlp.w1", "w4a16")
    assert isinstance(weight, LowBitWeight)
    assert tensors == {}
    assert (weight.scheme, weight.shape, weight.group) == ("w4a16", (16, 24), GROUP)
    torch.testing.assert_close(weight.dequantize(), expected, rtol=1e-6, atol=0)
    again = stored_tensors("mlp.w1", weight)
    assert all(torch.equal(again[name], tensor) for name, tensor in named(stored).items())


def test_eight_bits_are_read_as_the_library_reads_them() -> None:
    torch.manual_seed(0)
    tensors = {"weight": torch.randn(16, 24), "weight_scale": 0.01 + torch.rand(16, 1)}
    stored = IntQuantizationCompressor.compress(tensors, scheme(8, group=None))
    expected = IntQuantizationCompressor.decompress(stored, scheme(8, group=None))["weight"]
    weight = take_weight(named(stored), "mlp.w1", "w8a8")
    assert isinstance(weight, LowBitWeight)
    assert (weight.scheme, weight.group, weight.values.dtype) == ("w8a8", 24, torch.int8)
    torch.testing.assert_close(weight.dequantize(), expected, rtol=1e-6, atol=0)
    again = stored_tensors("mlp.w1", weight)
    assert all(torch.equal(again[name], tensor) for name, tensor in named(stored).items())


def test_zeros_of_any_number_of_rows_survive() -> None:
    """Eight rows share a word."""
    torch.manual_seed(0)
    zeros = torch.randint(-8, 8, (11, 2), dtype=torch.int8)
    values = pack_nibbles(torch.randint(-8, 8, (11, 16), dtype=torch.int8))
    weight = LowBitWeight("w4a16", values, torch.ones(11, 2), zeros, 8)
    again = take_weight(stored_tensors("x", weight), "x", "w4a16")
    assert isinstance(again, LowBitWeight)
    assert again.zeros is not None
    assert torch.equal(again.zeros, zeros)


def test_joined_matrices_have_the_rows_of_all() -> None:
    parts = [take_weight(named(compressed(symmetric)), "mlp.w1", "w4a16") for symmetric in (True, False)]
    low_bit = [part for part in parts if isinstance(part, LowBitWeight)]
    whole = join(low_bit)
    assert torch.equal(whole.dequantize(), torch.cat([part.dequantize() for part in low_bit]))
    assert torch.equal(whole.rows(3, 20).dequantize(), whole.dequantize()[3:20])


def test_different_groups_cannot_be_joined() -> None:
    one = take_weight(named(compressed(True)), "mlp.w1", "w4a16")
    other = take_weight(named(compressed(True)), "mlp.w1", "w4a8")
    assert isinstance(one, LowBitWeight)
    assert isinstance(other, LowBitWeight)
    with pytest.raises(ValueError, match="cannot be joined"):
        join([one, other])


def test_memory_is_that_of_the_bits() -> None:
    weight = take_weight(named(compressed(True)), "mlp.w1", "w4a16")
    assert isinstance(weight, LowBitWeight)
    assert weight.nbytes == 16 * 24 // 2 + 16 * 3 * 4
    assert weight.numel() == 16 * 24
