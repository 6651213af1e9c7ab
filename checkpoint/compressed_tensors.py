"""Matrices with 8 or 4 bits a weight, as compressed-tensors stores them.

A module `x` with 8 bits is `x.weight` (int8 [N, K]) and `x.weight_scale` [N, 1]. With 4 bits it is `x.weight_packed`
(int32 [N, K/8], the first weight in the lowest 4 bits, each value + 8), `x.weight_scale` [N, G], `x.weight_shape` and,
with zero points, `x.weight_zero_point` (int32 [N/8, G], packed along the rows). Source: compressed-tensors 0.20,
`pack-quantized` and `int-quantized`.
"""

from collections.abc import Iterable, Mapping, MutableMapping

import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.families import Scheme, TensorSpec
from checkpoint.lowbit import LowBitWeight, pack_nibbles, unpack_nibbles

_SHOWN = 5  # problems of an error


def take_weight(tensors: MutableMapping[str, Tensor], module: str, scheme: Scheme | None) -> Tensor | LowBitWeight:
    """Take the matrix of a module from a checkpoint's tensors.

    Args:
        tensors: by name, checked. Those of the matrix are removed, and the result shares their memory.
        module: such as 'language_model.layers.0.mlp.w1'.
        scheme: of the matrices with 4 bits. None without any.
    """
    scales = tensors.pop(f"{module}.weight_scale", None)
    if scales is None:
        return tensors.pop(f"{module}.weight")
    tensors.pop(f"{module}.weight_shape", None)
    packed = tensors.pop(f"{module}.weight_packed", None)
    if packed is None:
        values = tensors.pop(f"{module}.weight")
        return LowBitWeight("w8a8", values, scales, None, values.shape[1])
    assert scheme is not None
    zeros = tensors.pop(f"{module}.weight_zero_point", None)
    group = packed.shape[1] * 8 // scales.shape[1]
    # The bytes of a little-endian word are in the order of its weights.
    return LowBitWeight(scheme, packed.view(torch.uint8), scales, _unpack_zeros(zeros, len(scales)), group)


def stored_tensors(module: str, weight: LowBitWeight) -> dict[str, Tensor]:
    """Return the tensors that store a matrix, by name."""
    tensors = {f"{module}.weight_scale": weight.scales}
    if weight.scheme == "w8a8":
        return {f"{module}.weight": weight.values, **tensors}
    tensors |= {
        f"{module}.weight_packed": weight.values.contiguous().view(torch.int32),
        f"{module}.weight_shape": torch.tensor(weight.shape),
    }
    if weight.zeros is not None:
        tensors[f"{module}.weight_zero_point"] = _pack_zeros(weight.zeros)
    return tensors


def check_low_bit(tensors: Mapping[str, Tensor], specs: Iterable[TensorSpec], source: str) -> None:
    """Check scales and shapes of low-bit matrices.

    Args:
        tensors: by name. Only small ones are read.
        specs: of the tensors.
        source: the checkpoint's name for messages.

    Raises:
        FailedPrecondition: BAD_LOW_BIT, a scale is zero, negative, infinite or not a number, or a matrix says that it
            has another shape. The message names them.
    """
    matrices = {spec.name: spec for spec in specs}
    problems = []
    for name, spec in matrices.items():
        if spec.kind != "low_bit":
            continue
        if name.endswith(".weight_scale") and (problem := _scale_problem(tensors[name])):
            problems.append(f"{name} has {problem}")
        elif name.endswith(".weight_shape"):
            packed = matrices[name.removesuffix("shape") + "packed"]
            shape, found = [packed.shape[0], packed.shape[1] * 8], tensors[name].tolist()
            if found != shape:
                problems.append(f"{name} is {found}, not {shape}")
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise FailedPrecondition(
            f"Checkpoint {source} has low-bit matrices that cannot be used: {', '.join(problems[:_SHOWN])}{more}.",
            reason="BAD_LOW_BIT",
        )


def _scale_problem(scales: Tensor) -> str | None:
    if not bool(scales.isfinite().all()):
        return "a scale that is not a finite number"
    return None if bool((scales > 0).all()) else "a scale that is not above 0"


def _unpack_zeros(words: Tensor | None, num_rows: int) -> Tensor | None:
    """Return the zeros int8 [N, G] of int32 [N/8, G]."""
    if words is None:
        return None
    return unpack_nibbles(words.T.contiguous().view(torch.uint8)).T[:num_rows].contiguous()


def _pack_zeros(zeros_NG: Tensor) -> Tensor:
    """Return int8 [N, G] as int32 [N/8, G]."""
    rows_GN = torch.nn.functional.pad(zeros_NG.T, (0, -zeros_NG.shape[0] % 8))
    return pack_nibbles(rows_GN).contiguous().view(torch.int32).T.contiguous()
