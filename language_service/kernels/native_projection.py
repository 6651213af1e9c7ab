"""Projections with weights packed in panels."""

import torch
from torch import Tensor
from torch.nn import functional

from language_service.kernels import huge_pages
from language_service.kernels.library import NativeLibrary, address

# P panels of 64 outputs each, J = K/2 pairs of inputs, other letters as in `interface`

_PANEL = 64  # panel.h's kPanel


class NativeProjection:
    """A projection with weights packed in panels.

    Any number of rows reads them front to back.
    """

    def __init__(self, library: NativeLibrary, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self._linear = library.linear
        self._num_outputs, self._num_inputs = weight_NK.shape
        self.panels_PJ64x2 = pack(weight_NK)
        self.bias_N = bias_N

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N] plus `residual_TN`, rounded once."""
        out_TN = torch.empty(len(x_TK), self._num_outputs, dtype=torch.bfloat16)
        self._multiply(x_TK, residual_TN, out_TN)
        return out_TN

    def _multiply(self, x_TK: Tensor, residual_TN: Tensor | None, out_TN: Tensor) -> None:
        self._linear(
            x_TK.data_ptr(),
            self.panels_PJ64x2.data_ptr(),
            address(self.bias_N),
            address(residual_TN),
            out_TN.data_ptr(),
            len(x_TK),
            self._num_inputs,
            self._num_outputs,
            out_TN.dtype == torch.float32,
            torch.get_num_threads(),
        )


class NativeHead(NativeProjection):
    """A head packed in panels.

    Embeddings are read from the panels too, so a tied head is stored once.
    """

    def __init__(self, library: NativeLibrary, weight_VD: Tensor) -> None:
        super().__init__(library, weight_VD, None)
        # Reused by every step: the system maps new memory of this size page by page.
        self._logits_TV = torch.empty(0, self._num_outputs)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return logits [T, V] in float32.

        The next call overwrites them.

        Rounded to bfloat16, many different logits would become equal.
        """
        if len(x_TD) > len(self._logits_TV):
            self._logits_TV = torch.empty(len(x_TD), self._num_outputs)
        logits_TV = self._logits_TV[: len(x_TD)]
        self._multiply(x_TD, None, logits_TV)
        return logits_TV

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of `token_ids`."""
        return self.panels_PJ64x2[token_ids // _PANEL, :, token_ids % _PANEL].flatten(-2).contiguous()


def pack(weight_NK: Tensor) -> Tensor:
    """Return a weight as zero-padded panels [P, J, 64, 2]."""
    num_outputs, num_inputs = weight_NK.shape
    missing = -num_outputs % _PANEL
    whole_NK = functional.pad(weight_NK, (0, 0, 0, missing)) if missing else weight_NK  # no copy of a large weight
    pairs_PJ64x2 = whole_NK.view(-1, _PANEL, num_inputs // 2, 2).transpose(1, 2)
    return huge_pages.empty(pairs_PJ64x2.shape, weight_NK.dtype).copy_(pairs_PJ64x2)
