"""Round matrices, and compare with the obvious ways."""

import pytest
import torch
from torch import Tensor

from checkpoint.families import Scheme
from checkpoint.rounding import Grid, Inputs, best_scales, by_error, relative_error, to_nearest

FOUR = Grid("w4a16", 16)
SCHEMES: tuple[Scheme, ...] = ("w8a8", "w4a16", "w4a8")


def make_matrix(outputs: int = 24, inputs: int = 64) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(outputs, inputs)


def make_inputs(num_inputs: int = 64, num_tokens: int = 512) -> tuple[Inputs, Tensor]:
    """Return inputs that depend on each other."""
    torch.manual_seed(1)
    x_TK = torch.randn(num_tokens, 8) @ torch.randn(8, num_inputs) + 0.1 * torch.randn(num_tokens, num_inputs)
    inputs = Inputs(num_inputs)
    inputs.add(x_TK[:100])
    inputs.add(x_TK[100:])
    return inputs, x_TK


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_weight_is_further_than_half_a_step(scheme: Scheme) -> None:
    grid, matrix_NK = Grid(scheme, 16), make_matrix()
    rounded = to_nearest(matrix_NK, grid)
    steps_NK = rounded.scales.float().repeat_interleave(16, dim=1)
    assert ((rounded.dequantize() - matrix_NK).abs() <= 0.51 * steps_NK).all()  # the scale itself is in bfloat16


@pytest.mark.parametrize("scheme", SCHEMES)
def test_values_on_the_grid_stay(scheme: Scheme) -> None:
    grid = Grid(scheme, 16)
    first = to_nearest(make_matrix(), grid)
    again = to_nearest(first.dequantize(), grid, first.scales)
    assert torch.equal(again.integers(), first.integers())


def test_the_best_scales_are_no_worse_for_any_group() -> None:
    matrix_NK = make_matrix()
    plain, best = to_nearest(matrix_NK, FOUR), to_nearest(matrix_NK, FOUR, best_scales(matrix_NK, FOUR))
    plain_NG, best_NG = ((one.dequantize() - matrix_NK).square().view(24, -1, 16).sum(dim=-1) for one in (plain, best))
    assert (best_NG <= plain_NG).all()
    assert best_NG.sum() < plain_NG.sum()


def test_a_group_of_zeros_has_a_scale() -> None:
    """Zero would be refused when the checkpoint is loaded."""
    rounded = to_nearest(torch.zeros(8, 32), FOUR, best_scales(torch.zeros(8, 32), FOUR))
    assert (rounded.scales > 0).all()
    assert torch.equal(rounded.dequantize(), torch.zeros(8, 32))


def test_errors_cancel_in_the_outputs() -> None:
    matrix_NK, (inputs, x_TK) = make_matrix(), make_inputs()
    nearest, calibrated = to_nearest(matrix_NK, FOUR), by_error(matrix_NK, FOUR, inputs)

    def error(rounded_NK: Tensor) -> float:
        exact_TN = x_TK @ matrix_NK.T
        return float((x_TK @ rounded_NK.T - exact_TN).norm() / exact_TN.norm())

    assert error(calibrated.dequantize()) < 0.6 * error(nearest.dequantize())
    assert relative_error(matrix_NK, calibrated, inputs) == pytest.approx(error(calibrated.dequantize()), rel=1e-3)


def test_independent_inputs_are_rounded_to_nearest() -> None:
    """Then no input can take back the error of another."""
    matrix_NK, inputs = make_matrix(), Inputs(64)
    inputs.add(torch.eye(64))
    rounded = by_error(matrix_NK, FOUR, inputs)
    assert torch.equal(rounded.integers(), to_nearest(matrix_NK, FOUR, rounded.scales).integers())


def test_inputs_that_are_always_zero_do_no_harm() -> None:
    matrix_NK, (_, x_TK) = make_matrix(), make_inputs()
    x_TK[:, 10:20] = 0
    silent = Inputs(64)
    silent.add(x_TK)
    assert by_error(matrix_NK, FOUR, silent).dequantize().isfinite().all()
    assert by_error(matrix_NK, FOUR, Inputs(64)).dequantize().isfinite().all()


def test_inputs_that_are_not_finite_are_refused() -> None:
    inputs = Inputs(64)
    inputs.add(torch.full((3, 64), torch.nan))
    with pytest.raises(ValueError, match="not finite"):
        by_error(make_matrix(), FOUR, inputs)
