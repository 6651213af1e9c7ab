"""Kernels in Triton, for GPUs.

A decoding step of a few tokens reads the weights once and runs hundreds of small operations. Each takes microseconds on
a GPU, so one kernel here does the work of several of torch's. Products are torch's. Importing this module needs Triton.

Letters as in `interface`
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from checkpoint.families import LanguageConfig
from checkpoint.lowbit import LowBitWeight
from language_service.kernels.interface import Angles, Layer, Layers, Projection
from language_service.kernels.layers import LayerByLayer
from language_service.kernels.paged_attend import PagedAttend
from language_service.kernels.plain import PlainKernels, PlainProjection
from language_service.model import Attend

_SWIGLU_WIDTH = 1024  # elements of a program


@triton.jit
def _rms_norm(x_TD, weight_D, out_TD, width, eps, padded: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    elements = tl.arange(0, padded)
    inside = elements < width
    x = tl.load(x_TD + row * width + elements, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_D + elements, mask=inside, other=0.0).to(tl.float32)
    scale = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    tl.store(out_TD + row * width + elements, (x * scale * weight).to(out_TD.dtype.element_ty), mask=inside)


@triton.jit
def _rotate_heads(
    x_THE,
    weight_E,
    cos_TF,
    sin_TF,
    row_stride,
    eps,
    half: tl.constexpr,
    has_weight: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = tl.arange(0, half)
    first_at = x_THE + row * row_stride + head * 2 * half + pairs
    second_at = first_at + half
    first, second = tl.load(first_at).to(tl.float32), tl.load(second_at).to(tl.float32)
    if has_weight:
        scale = 1.0 / tl.sqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * half) + eps)
        first = first * scale * tl.load(weight_E + pairs).to(tl.float32)
        second = second * scale * tl.load(weight_E + half + pairs).to(tl.float32)
    cos, sin = tl.load(cos_TF + row * half + pairs), tl.load(sin_TF + row * half + pairs)
    tl.store(first_at, (first * cos - second * sin).to(x_THE.dtype.element_ty))
    tl.store(second_at, (second * cos + first * sin).to(x_THE.dtype.element_ty))


@triton.jit
def _place_heads(
    qkv_TX,
    q_norm_E,
    k_norm_E,
    cos_TF,
    sin_TF,
    kv_2PSGE,
    slots_T,
    row_stride,
    value_offset,
    eps,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    half: tl.constexpr,
    has_norm: tl.constexpr,
):
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    pairs = tl.arange(0, half)
    is_query, is_value = head < num_heads, head >= num_heads + num_kv_heads
    first_at = qkv_TX + row * row_stride + head * 2 * half + pairs
    first, second = tl.load(first_at).to(tl.float32), tl.load(first_at + half).to(tl.float32)
    if has_norm:
        scale = 1.0 / tl.sqrt((tl.sum(first * first, 0) + tl.sum(second * second, 0)) / (2 * half) + eps)
        low = tl.where(is_query, tl.load(q_norm_E + pairs), tl.load(k_norm_E + pairs)).to(tl.float32)
        high = tl.where(is_query, tl.load(q_norm_E + half + pairs), tl.load(k_norm_E + half + pairs)).to(tl.float32)
        first = tl.where(is_value, first, first * scale * low)
        second = tl.where(is_value, second, second * scale * high)
    cos, sin = tl.load(cos_TF + row * half + pairs), tl.load(sin_TF + row * half + pairs)
    left = tl.where(is_value, first, first * cos - second * sin).to(qkv_TX.dtype.element_ty)
    right = tl.where(is_value, second, second * cos + first * sin).to(qkv_TX.dtype.element_ty)
    if is_query:
        tl.store(first_at, left)
        tl.store(first_at + half, right)
    else:
        slot = tl.load(slots_T + row)
        kv_head = (head - num_heads) % num_kv_heads
        place = (slot * num_kv_heads + kv_head) * 2 * half + tl.where(is_value, value_offset, 0)
        is_stored = (pairs >= 0) & (slot >= 0)
        tl.store(kv_2PSGE + place + pairs, left, mask=is_stored)
        tl.store(kv_2PSGE + place + pairs + half, right, mask=is_stored)


@triton.jit
def _swiglu(x_TM, out, width, size: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    elements = tl.program_id(1) * size + tl.arange(0, size)
    inside = elements < width
    gate = tl.load(x_TM + row * 2 * width + elements, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x_TM + row * 2 * width + width + elements, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + elements, (gate / (1 + tl.exp(-gate)) * up).to(out.dtype.element_ty), mask=inside)


class InPlaceProjection(PlainProjection):
    """A projection that adds to its residual in place.

    So the product and the sum are one kernel.
    """

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N], plus `residual_TN`, whose memory they take."""
        if residual_TN is None or self._bias_N is not None:
            return super().__call__(x_TK, residual_TN)
        return residual_TN.addmm_(x_TK, self._weight_NK.t())


class TritonKernels(PlainKernels):
    """Implements `Kernels` on GPUs.

    Rows must be contiguous, except those of `rotate_heads`.
    """

    name = "triton"
    skips_negative_slots = True

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__(dtype)
        self.angle_dtype = torch.float32

    def project(self, weight_NK: Tensor | LowBitWeight, bias_N: Tensor | None) -> Projection:
        """Return a projection with these weights."""
        if isinstance(weight_NK, LowBitWeight):
            return super().project(weight_NK, bias_N)
        return InPlaceProjection(weight_NK, bias_N)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Normalise `x_TD` in float32 and round once."""
        out_TD, width = torch.empty_like(x_TD), x_TD.shape[1]
        _rms_norm[len(x_TD),](x_TD, weight_D, out_TD, width, eps, padded=triton.next_power_of_2(width))
        return out_TD

    def rotate_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Normalise and rotate in place, in float32, rounded once."""
        num_rows, heads, size = x_THE.shape
        weight = x_THE if weight_E is None else weight_E  # is not read then
        _rotate_heads[num_rows, heads](
            x_THE,
            weight,
            cos_T1F,
            sin_T1F,
            x_THE.stride(0),
            eps,
            half=size // 2,
            has_weight=weight_E is not None,
            num_warps=1,
        )
        return x_THE

    def place_heads(
        self, qkv_TX: Tensor, layer: Layer, eps: float, angles: Angles, kv_2PSGE: Tensor, slots_T: Tensor
    ) -> None:
        """Normalise and rotate heads, and store keys and values.

        Queries stay in place.

        Args:
            qkv_TX: heads of queries, keys and values, end to end.
            layer: with the weights of the norms, both or none.
            eps: of the norms.
            angles: of the tokens.
            kv_2PSGE: a layer of the cache.
            slots_T: where keys and values are stored. Those of a negative slot are not.
        """
        kv_heads, size = kv_2PSGE.shape[3:]
        num_heads = qkv_TX.shape[1] // size - 2 * kv_heads
        q_norm, k_norm = layer.q_norm, layer.k_norm
        has_norm = q_norm is not None and k_norm is not None
        _place_heads[len(qkv_TX), num_heads + 2 * kv_heads](
            qkv_TX,
            q_norm if has_norm else qkv_TX,  # is not read then
            k_norm if has_norm else qkv_TX,
            *angles,
            kv_2PSGE,
            slots_T,
            qkv_TX.stride(0),
            kv_2PSGE.stride(0),
            eps,
            num_heads=num_heads,
            num_kv_heads=kv_heads,
            half=size // 2,
            has_norm=has_norm,
            num_warps=1,
        )

    def layers(self, config: LanguageConfig, layers: Sequence[Layer]) -> Layers:
        """Return the layers, computed one after the other."""
        return TritonLayers(self, config, layers)

    def swiglu(self, x_TM: Tensor) -> Tensor:
        """Return silu(gate) * up, [T, M / 2]."""
        num_rows, width = x_TM.shape[0], x_TM.shape[1] // 2
        out = x_TM.new_empty(num_rows, width)
        _swiglu[num_rows, triton.cdiv(width, _SWIGLU_WIDTH)](x_TM, out, width, size=_SWIGLU_WIDTH)
        return out


class TritonLayers(LayerByLayer):
    """Layers that store keys and values in one kernel.

    It takes them from the projection, normalises and rotates them.
    """

    def __init__(self, kernels: TritonKernels, config: LanguageConfig, layers: Sequence[Layer]) -> None:
        super().__init__(kernels, config, layers)
        self._triton = kernels

    def _attended(self, index: int, layer: Layer, qkv_TX: Tensor, angles: Angles, attend: Attend) -> Tensor:
        if not isinstance(attend, PagedAttend):
            return super()._attended(index, layer, qkv_TX, angles, attend)
        kv_2PSGE = attend.kv[index]
        self._triton.place_heads(qkv_TX, layer, self._config.norm_eps, angles, kv_2PSGE, attend.slots_T)
        q_THE = self._heads(qkv_TX)[0]
        return attend.attend(q_THE, kv_2PSGE)


def supports(head_dim: int, dtype: torch.dtype) -> bool:
    """Return whether `TritonKernels` can compute heads of this size."""
    return head_dim >= 4 and head_dim & (head_dim - 1) == 0 and dtype in (torch.float32, torch.bfloat16)


def largest_error(dtype: torch.dtype, device: torch.device, head_dim: int, kernels: TritonKernels) -> float:
    """Return the largest error of an operation on random numbers.

    Compared with torch in float32, as a part of the largest number.
    """
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, generator=generator)

    plain = PlainKernels(torch.float32)
    x_TD, weight_D, heads_THE, weight_E = random(5, 96), random(96), random(5, 3, head_dim), random(head_dim)
    angles_T1F = random(5, 1, head_dim // 2)
    angles = (angles_T1F.cos(), angles_T1F.sin())
    residual_TN, weight_NK = random(5, 64), random(64, 96) / 10
    inputs = [each.to(dtype) for each in (x_TD, weight_D, heads_THE, weight_E, residual_TN, weight_NK)]
    x, norm, heads, head_norm, residual, weight = inputs
    wide = [each.float() for each in inputs]
    pairs = [
        (kernels.rms_norm(x, norm, 1e-6), plain.rms_norm(wide[0], wide[1], 1e-6)),
        (
            kernels.rotate_heads(heads.clone(), head_norm, 1e-6, *angles),
            plain.rotate_heads(wide[2], wide[3], 1e-6, *angles),
        ),
        (kernels.rotate_heads(heads.clone(), None, 1e-6, *angles), plain.rotate_heads(wide[2], None, 1e-6, *angles)),
        (kernels.swiglu(x), plain.swiglu(wide[0])),
        (kernels.project(weight, None)(x, residual.clone()), functional.linear(wide[0], wide[5]) + wide[4]),
    ]
    return max(float((found.float() - expected).abs().max() / expected.abs().max()) for found, expected in pairs)
