"""Round a matrix to 8 or 4 bits a weight.

`to_nearest` needs nothing but the matrix. `by_error` chooses the values so that the outputs stay: it is GPTQ (Frantar
et al., 2022, https://arxiv.org/abs/2210.17323), with fixed scales and the inputs in the order of their size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from checkpoint.families import Scheme
from checkpoint.lowbit import LowBitWeight, pack_nibbles

# N outputs, K inputs, G groups of a row, g inputs of a group, S candidates

_BLOCK = 128  # inputs that are rounded before the others learn of their errors
# Of the mean square of the inputs, added to each. Keeps the inverse finite. The first that does is taken.
_DAMPINGS = (0.01, 0.1, 1.0)
_TINY = 2.0**-100  # the scale of a group of zeros
# The largest weight of a group may be cut, so that the others are rounded more finely.
_SHARES = torch.linspace(1.0, 0.6, 17)


@dataclass(frozen=True, slots=True)
class Grid:
    """The values that weights are rounded to."""

    scheme: Scheme
    group: int  # inputs that share a scale

    @property
    def largest(self) -> int:
        """The largest value."""
        return 127 if self.scheme == "w8a8" else 7

    @property
    def smallest(self) -> int:
        """The smallest value."""
        return -127 if self.scheme == "w8a8" else -8


class Inputs:
    """The products of a matrix's inputs, summed over tokens."""

    def __init__(self, num_inputs: int) -> None:
        self.products_KK = torch.zeros(num_inputs, num_inputs)
        self.num_tokens = 0

    def add(self, x_TK: Tensor) -> None:
        """Add the inputs of some tokens."""
        x_TK = x_TK.float()
        self.products_KK.addmm_(x_TK.T, x_TK)
        self.num_tokens += len(x_TK)


def to_nearest(weight_NK: Tensor, grid: Grid, scales_NG: Tensor | None = None) -> LowBitWeight:
    """Round each weight to the nearest value.

    Args:
        weight_NK: the matrix, of any float type.
        grid: the values.
        scales_NG: of the groups, in bfloat16. Default: the largest weight of a group becomes the largest value.
    """
    grouped_NGg = weight_NK.float().reshape(len(weight_NK), -1, grid.group)
    if scales_NG is None:
        scales_NG = _rounded(grouped_NGg.abs().amax(dim=-1) / grid.largest)
    values_NGg = (grouped_NGg / scales_NG.float()[:, :, None]).round().clamp(grid.smallest, grid.largest)
    return _packed(values_NGg.flatten(1), scales_NG, grid)


def best_scales(weight_NK: Tensor, grid: Grid, importance_K: Tensor | None = None) -> Tensor:
    """Return the scales [N, G] with the smallest squared error.

    Args:
        weight_NK: the matrix.
        grid: the values.
        importance_K: the mean square of each input. Default: all count the same.
    """
    grouped_NGg = weight_NK.float().reshape(len(weight_NK), -1, grid.group)
    importance_Gg = None if importance_K is None else importance_K.view(-1, grid.group)
    largest_NG = grouped_NGg.abs().amax(dim=-1)
    best_NG, errors_NG = _rounded(largest_NG / grid.largest), torch.full_like(largest_NG, torch.inf)
    for share in _SHARES:
        scales_NG = _rounded(largest_NG * share / grid.largest)
        scale_NG1 = scales_NG.float()[:, :, None]
        rounded = (grouped_NGg / scale_NG1).round().clamp(grid.smallest, grid.largest) * scale_NG1
        squares_NGg = (rounded - grouped_NGg).square()
        found_NG = (squares_NGg if importance_Gg is None else squares_NGg * importance_Gg).sum(dim=-1)
        better_NG = found_NG < errors_NG
        best_NG = torch.where(better_NG, scales_NG, best_NG)
        errors_NG = torch.where(better_NG, found_NG, errors_NG)
    return best_NG


def by_error(weight_NK: Tensor, grid: Grid, inputs: Inputs) -> LowBitWeight:
    """Round weights so that errors of the outputs cancel.

    Each input is rounded in turn. Its error is taken back by the inputs that are not rounded yet.

    Args:
        weight_NK: the matrix.
        grid: the values.
        inputs: of the matrix, from calibration.
    """
    importance_K = inputs.products_KK.diagonal()
    scales_NG = best_scales(weight_NK, grid, importance_K / max(1, inputs.num_tokens))
    # The largest inputs first: most others can still take their errors back. Groups stay where they are.
    order_K = importance_K.argsort(descending=True)
    scales_NK = scales_NG.float().repeat_interleave(grid.group, dim=1)[:, order_K]
    left_NK = weight_NK.float()[:, order_K].clone()
    factors_KK = _factors(inputs.products_KK[order_K][:, order_K])
    values_NK = torch.empty_like(left_NK)
    num_inputs = left_NK.shape[1]
    for start in range(0, num_inputs, _BLOCK):
        stop = min(start + _BLOCK, num_inputs)
        errors = torch.zeros(len(left_NK), stop - start)
        for index in range(start, stop):
            weights_N, scales_N = left_NK[:, index], scales_NK[:, index]
            values_N = (weights_N / scales_N).round().clamp(grid.smallest, grid.largest)
            error_N = (weights_N - values_N * scales_N) / factors_KK[index, index]
            left_NK[:, index:stop] -= error_N[:, None] * factors_KK[index, index:stop]
            values_NK[:, index], errors[:, index - start] = values_N, error_N
        left_NK[:, stop:] -= errors @ factors_KK[start:stop, stop:]
    return _packed(values_NK[:, order_K.argsort()], scales_NG, grid)


def relative_error(weight_NK: Tensor, rounded: LowBitWeight, inputs: Inputs | None) -> float:
    """Return the relative error (RMS) of the outputs.

    Without inputs it is the error of the weights.
    """
    exact_NK = weight_NK.float()
    difference_NK = rounded.dequantize() - exact_NK
    error, size = (_square(matrix_NK, inputs) for matrix_NK in (difference_NK, exact_NK))
    return (error / size) ** 0.5 if size else 0.0


def _square(matrix_NK: Tensor, inputs: Inputs | None) -> float:
    product_NK = matrix_NK if inputs is None else matrix_NK @ inputs.products_KK
    return max(0.0, float((product_NK * matrix_NK).sum(dtype=torch.float64)))


def _rounded(scales_NG: Tensor) -> Tensor:
    """Return scales as they are stored."""
    return scales_NG.clamp_min(_TINY).to(torch.bfloat16)


def _factors(products_KK: Tensor) -> Tensor:
    """Return the upper Cholesky factor of the inverse, [K, K]."""
    mean = products_KK.diagonal().mean().clamp_min(_TINY)
    for damping in _DAMPINGS:
        damped_KK = products_KK / mean
        damped_KK.diagonal().add_(damping)
        lower_KK, failed = torch.linalg.cholesky_ex(damped_KK)
        if not failed:
            upper_KK, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_KK), upper=True)
            if not failed:
                factors_KK: Tensor = upper_KK
                return factors_KK
    raise ValueError("the inputs of a matrix are not finite")


def _packed(values_NK: Tensor, scales_NG: Tensor, grid: Grid) -> LowBitWeight:
    values = values_NK.to(torch.int8)
    return LowBitWeight(
        grid.scheme, values if grid.scheme == "w8a8" else pack_nibbles(values), scales_NG, None, grid.group
    )
