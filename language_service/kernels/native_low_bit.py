"""Projections with 8 or 4 bits a weight, packed in panels."""

import ctypes

import torch
from torch import Tensor

from checkpoint.lowbit import LowBitWeight
from language_service.kernels.library import NativeLibrary, address
from language_service.kernels.low_bit_packing import pack, scale_bytes, unpack_w8a8_rows

# Letters as in `low_bit_packing`

_SCHEMES = ("w8a8", "w4a16", "w4a8")  # in the order of low_bit.h's Scheme


class LowBitMatrix(ctypes.Structure):
    """`LowBit` in low_bit.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("panels", "bias")),
        *(
            (name, ctypes.c_long)
            for name in ("scheme", "group", "scale_bytes", "has_zeros", "num_inputs", "num_outputs")
        ),
    )


class NativeLowBitProjection:
    """A projection whose weights stay in 8 or 4 bits.

    Any number of rows reads them front to back.
    """

    def __init__(self, library: NativeLibrary, weight: LowBitWeight, bias_N: Tensor | None) -> None:
        """Copy the weights.

        Args:
            library: the compiled kernels.
            weight: `can_pack` must be true.
            bias_N: in bfloat16.
        """
        self._low_bit = library.low_bit
        self._num_outputs, self._num_inputs = weight.shape
        self._panels_PB = pack(weight)
        self._bias_N = bias_N
        self.matrix = LowBitMatrix(
            panels=self._panels_PB.data_ptr(),
            bias=address(bias_N),
            scheme=_SCHEMES.index(weight.scheme),
            group=weight.group,
            scale_bytes=scale_bytes(weight),
            has_zeros=weight.zeros is not None,
            num_inputs=self._num_inputs,
            num_outputs=self._num_outputs,
        )

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N] plus `residual_TN`, rounded once."""
        out_TN = torch.empty(len(x_TK), self._num_outputs, dtype=torch.bfloat16)
        self._multiply(x_TK, residual_TN, out_TN)
        return out_TN

    def _multiply(self, x_TK: Tensor, residual_TN: Tensor | None, out_TN: Tensor) -> None:
        self._low_bit(
            ctypes.addressof(self.matrix),
            x_TK.data_ptr(),
            address(residual_TN),
            out_TN.data_ptr(),
            len(x_TK),
            out_TN.dtype == torch.float32,
            torch.get_num_threads(),
        )


class NativeLowBitHead(NativeLowBitProjection):
    """A head of w8a8.

    Embeddings can be read from its rows too, so a tied head is stored once.
    """

    def __init__(self, library: NativeLibrary, weight: LowBitWeight) -> None:
        super().__init__(library, weight, None)
        # Reused by every step: the system maps new memory of this size page by page.
        self._logits_TV = torch.empty(0, self._num_outputs)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return logits [T, V] in float32.

        The next call overwrites them.
        """
        if len(x_TD) > len(self._logits_TV):
            self._logits_TV = torch.empty(len(x_TD), self._num_outputs)
        logits_TV = self._logits_TV[: len(x_TD)]
        self._multiply(x_TD, None, logits_TV)
        return logits_TV

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of `token_ids`, in bfloat16."""
        values, scales = unpack_w8a8_rows(self._panels_PB, self._num_inputs, token_ids)
        return (values * scales).to(torch.bfloat16)
