"""Compare projections of few bits with their definition."""

import pytest
import torch
from torch import Tensor

from checkpoint.families import Scheme
from checkpoint.lowbit import LowBitWeight
from checkpoint.rounding import Grid, to_nearest
from language_service.kernels import plain_low_bit
from language_service.kernels.plain import PlainKernels

SCHEMES: tuple[Scheme, ...] = ("w8a8", "w4a16", "w4a8")


def make_weight(scheme: Scheme, outputs: int = 40, inputs: int = 64) -> LowBitWeight:
    torch.manual_seed(0)
    return to_nearest(torch.randn(outputs, inputs), Grid(scheme, inputs if scheme == "w8a8" else 32))


def expected(x_TK: Tensor, weight: LowBitWeight) -> Tensor:
    """Return the products in float64, row by row."""
    rows = []
    for x_K in x_TK.double():
        if weight.scheme != "w4a16":
            scale = x_K.abs().max() / 127
            x_K = (x_K / scale).round() * scale
        rows.append(weight.dequantize().double() @ x_K)
    return torch.stack(rows)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("part", [7, 4096])
def test_outputs_are_the_definition(scheme: Scheme, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain_low_bit, "_ROWS", part)
    weight = make_weight(scheme)
    x_TK, bias_N, residual_TN = torch.randn(5, 64), torch.randn(40), torch.randn(5, 40)
    project = PlainKernels(torch.float32).project(weight, bias_N)
    exact_TN = expected(x_TK, weight)
    torch.testing.assert_close(project(x_TK).double(), exact_TN + bias_N, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        project(x_TK, residual_TN).double(), exact_TN + bias_N + residual_TN, rtol=1e-5, atol=1e-4
    )
    head = PlainKernels(torch.float32).head(weight)
    torch.testing.assert_close(head.logits(x_TK).double(), exact_TN, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_bfloat16_outputs_are_rounded_once(scheme: Scheme) -> None:
    weight = make_weight(scheme)
    x_TK = torch.randn(5, 64).bfloat16()
    out_TN = PlainKernels(torch.bfloat16).project(weight, None)(x_TK)
    assert out_TN.dtype == torch.bfloat16
    exact_TN = expected(x_TK, weight)
    assert (out_TN.double() - exact_TN).abs().max() < 0.02 * exact_TN.abs().max()


def test_a_row_of_zeros_stays_zero() -> None:
    """Its scale would divide by zero."""
    out_TN = PlainKernels(torch.float32).project(make_weight("w8a8"), None)(torch.zeros(1, 64))
    assert torch.equal(out_TN, torch.zeros(1, 40))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_gives_no_number(bad: float) -> None:
    x_TK = torch.zeros(2, 64)
    x_TK[1, 3] = bad
    out_TN = PlainKernels(torch.float32).project(make_weight("w8a8"), None)(x_TK)
    assert out_TN[0].isfinite().all()
    assert not out_TN[1].isfinite().any()


def test_a_head_embeds_its_rows() -> None:
    weight = make_weight("w8a8")
    ids = torch.tensor([[3, 0], [39, 3]])
    assert torch.equal(PlainKernels(torch.float32).head(weight).embed(ids), weight.dequantize()[ids])
