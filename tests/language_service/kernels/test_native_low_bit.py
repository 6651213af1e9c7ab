"""Compare products with 8 and 4 bits a weight with their definition."""

import pytest
import torch
from torch import Tensor

from checkpoint.lowbit import LowBitWeight, pack_nibbles
from language_service.kernels.library import NativeLibrary
from language_service.kernels.low_bit_packing import can_pack
from language_service.kernels.native_low_bit import NativeLowBitHead, NativeLowBitProjection

GROUPED = [(scheme, group, zeros) for scheme in ("w4a16", "w4a8") for group in (32, 64, 128) for zeros in (False, True)]


def make_w8a8(num_outputs: int, num_inputs: int) -> LowBitWeight:
    values_NK = torch.randint(-128, 128, (num_outputs, num_inputs), dtype=torch.int8)
    return LowBitWeight("w8a8", values_NK, torch.rand(num_outputs, 1) + 0.01, None, num_inputs)


def make_grouped(
    scheme: str, num_outputs: int, num_groups: int, group: int, zeros: bool, dtype: torch.dtype = torch.bfloat16
) -> LowBitWeight:
    values_NK = torch.randint(-8, 8, (num_outputs, num_groups * group), dtype=torch.int8)
    return LowBitWeight(
        scheme,  # type: ignore[arg-type]
        pack_nibbles(values_NK),
        (torch.rand(num_outputs, num_groups) + 0.01).to(dtype),
        torch.randint(-8, 8, (num_outputs, num_groups), dtype=torch.int8) if zeros else None,
        group,
    )


def random(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def round_rows(x_TK: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows as integers, and their scales."""
    scales_T1 = x_TK.float().abs().amax(dim=1, keepdim=True) / 127
    return (x_TK.float() / scales_T1).round().double(), scales_T1


@pytest.mark.parametrize(("num_outputs", "num_inputs"), [(1, 2), (64, 34), (65, 510), (130, 3074)])
def test_sums_of_8_bits_are_exact(native: NativeLibrary, num_outputs: int, num_inputs: int) -> None:
    weight = make_w8a8(num_outputs, num_inputs)
    for num_rows in (1, 2, 7, 195):
        x_TK = random(num_rows, num_inputs)
        integers_TK, scales_T1 = round_rows(x_TK)
        sums_TN = integers_TK @ weight.values.double().T
        expected_TN = sums_TN.float() * weight.scales.T * scales_T1
        assert torch.equal(NativeLowBitHead(native, weight).logits(x_TK), expected_TN)


def test_the_largest_sums_of_8_bits_are_exact(native: NativeLibrary) -> None:
    """Adding products in 16 bits would go out of range."""
    values_NK = torch.tensor([-128, 127], dtype=torch.int8)[:, None].expand(2, 20000).contiguous()
    weight = LowBitWeight("w8a8", values_NK, torch.ones(2, 1), None, 20000)
    for sign in (1, -1):
        x_TK = torch.full((3, 20000), 127 * sign, dtype=torch.bfloat16)
        expected_N = values_NK.double().sum(dim=1) * 127 * sign
        assert torch.equal(NativeLowBitHead(native, weight).logits(x_TK)[2], expected_N.float())


@pytest.mark.parametrize(("num_outputs", "num_groups"), [(1, 1), (64, 2), (65, 3), (200, 5)])
def test_products_of_4_bits_equal_the_definition(native: NativeLibrary, num_outputs: int, num_groups: int) -> None:
    """Within the error of as many additions in float32."""
    for scheme, group, zeros in GROUPED:
        weight = make_grouped(scheme, num_outputs, num_groups, group, zeros)
        for num_rows in (1, 2, 7, 195):
            x_TK = random(num_rows, num_groups * group)
            rows_TK = x_TK.double()
            if scheme == "w4a8":
                integers_TK, scales_T1 = round_rows(x_TK)
                rows_TK = integers_TK * scales_T1
            found_TN = NativeLowBitHead(native, weight).logits(x_TK).double()
            largest_NK = 16 * weight.scales.double().repeat_interleave(group, dim=1)
            bound_TN = (num_groups * group + 4) * 2.0**-24 * (rows_TK.abs() @ largest_NK.T)
            error_TN = (found_TN - rows_TK @ weight.dequantize().double().T).abs()
            assert (error_TN <= bound_TN).all(), (scheme, group, zeros, num_rows)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_of_4_bits_and_rows_of_8_are_exact_in_each_group(
    native: NativeLibrary, dtype: torch.dtype, zeros: bool
) -> None:
    """So every processor gives the same bits."""
    weight, x_TK = make_grouped("w4a8", 70, 6, 32, zeros, dtype), random(9, 192)
    integers_TK, scales_T1 = round_rows(x_TK)
    integers_NK = weight.integers().double()
    sums_TN = torch.zeros(9, 70)
    for group in range(6):
        inputs = slice(32 * group, 32 * group + 32)
        group_TN = integers_TK[:, inputs] @ integers_NK[:, inputs].T
        sums_TN += group_TN.float() * weight.scales.float()[:, group]
    assert torch.equal(NativeLowBitHead(native, weight).logits(x_TK), sums_TN * scales_T1)


def every_weight(num_outputs: int) -> list[LowBitWeight]:
    grouped = [make_grouped(scheme, num_outputs, 5, group, zeros) for scheme, group, zeros in GROUPED]
    return [make_w8a8(num_outputs, 602), *grouped]


def test_a_row_is_bitwise_equal_in_every_batch(native: NativeLibrary) -> None:
    for weight in every_weight(200):
        project = NativeLowBitProjection(native, weight, random(200))
        x_TK = random(200, weight.shape[1])
        together_TN = project(x_TK)
        for num_rows in (1, 2, 3, 17, 33):
            for start in range(0, 200 - num_rows, 37):
                rows = slice(start, start + num_rows)
                assert torch.equal(project(x_TK[rows]), together_TN[rows]), (weight.scheme, num_rows)


def test_bias_and_residual_are_added_before_rounding(native: NativeLibrary) -> None:
    for weight in every_weight(130):
        bias_N, residual_TN, x_TK = random(130), random(7, 130), random(7, weight.shape[1])
        product_TN = NativeLowBitHead(native, weight).logits(x_TK)
        expected_TN = product_TN + bias_N.float() + residual_TN.float()
        found_TN = NativeLowBitProjection(native, weight, bias_N)(x_TK, residual_TN)
        assert torch.equal(found_TN, expected_TN.to(torch.bfloat16))


def test_a_row_that_is_not_finite_gives_nan_and_changes_no_other(native: NativeLibrary) -> None:
    for weight in every_weight(70):
        project, x_TK = NativeLowBitProjection(native, weight, None), random(9, weight.shape[1])
        expected_TN = project(x_TK)
        x_TK[3, 5], x_TK[7, 0] = float("nan"), float("nan")
        found_TN = project(x_TK)
        assert found_TN[[3, 7]].isnan().all()
        others = [0, 1, 2, 4, 5, 6, 8]
        assert torch.equal(found_TN[others], expected_TN[others])


def test_rows_of_zeros_and_tiny_numbers_stay_finite(native: NativeLibrary) -> None:
    weight = make_w8a8(65, 64)
    x_TK = torch.zeros(3, 64, dtype=torch.bfloat16)
    x_TK[1] = 1e-38
    x_TK[2] = 3e38
    found_TN = NativeLowBitProjection(native, weight, None)(x_TK)
    assert torch.equal(found_TN[0], torch.zeros(65, dtype=torch.bfloat16))
    assert found_TN[1].isfinite().all()


def test_a_tied_head_reads_embeddings_from_its_rows(native: NativeLibrary) -> None:
    weight = make_w8a8(130, 34)
    token_ids = torch.tensor([[0, 129], [64, 63]])
    expected = weight.dequantize().to(torch.bfloat16)[token_ids]
    assert torch.equal(NativeLowBitHead(native, weight).embed(token_ids), expected)


def test_only_groups_of_the_panels_can_be_packed() -> None:
    assert all(can_pack(weight) for weight in every_weight(3))
    assert not can_pack(make_grouped("w4a16", 3, 2, 16, zeros=False))
    assert not can_pack(make_grouped("w4a16", 3, 1, 256, zeros=False))
