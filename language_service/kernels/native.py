"""The steps of a layer in C++ for processors that multiply bfloat16 in vectors of 512 bits.

Built with the package where a compiler is there; where it was not, or the processor cannot run it, torch does the same.
Every row of a batch is computed in an order that does not depend on the other rows, so results are equal to the bit
whatever shares a step.
"""

import ctypes
from array import array
from functools import cache
from importlib.util import find_spec

import structlog
import torch
from torch import Tensor
from torch.nn import functional

from checkpoint.config import LanguageConfig
from language_service.kernels import huge_pages
from language_service.kernels.interface import Projection
from language_service.kernels.plain import OneDnnProjection
from language_service.model.attention import Attend

# P panels of 64 outputs each, J = K/2 pairs of inputs; the other letters are those of `interface`

_log = structlog.get_logger()

_PANEL = 64  # tile.h's kPanel
_MAX_GROUP = 96  # attention.cpp's kMaxRows
_NEEDED = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16")
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "tandem_linear": [*[_POINTER] * 5, *[_LONG] * 3, _INT, _INT],
    "tandem_rms_norm": [*[_POINTER] * 3, _LONG, _LONG, _FLOAT, _INT],
    "tandem_turn_heads": [*[_POINTER] * 4, *[_LONG] * 4, _FLOAT, _INT],
    "tandem_swiglu": [_POINTER, _POINTER, _LONG, _LONG, _INT],
    "tandem_largest": [*[_POINTER] * 3, _LONG, _LONG, _INT],
    "tandem_attention": [*[_POINTER] * 8, *[_LONG] * 6, _INT],
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, None where they cannot be used; the log says so once."""
    capabilities = torch.cpu.get_capabilities()
    lacking = [name for name in _NEEDED if not capabilities.get(name)]
    spec = find_spec("language_service.kernels._native")
    if lacking or spec is None or spec.origin is None:
        why = f"the processor lacks {', '.join(lacking)}" if lacking else "they were not built"
        _log.info("native kernels are not used", reason=why)
        return None
    # By path and not imported: it holds plain functions, called without the interpreter's lock.
    found = ctypes.CDLL(spec.origin)
    for name, signature in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = signature, None
    return found


def fits(config: LanguageConfig, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the compiled kernels are there and can serve such a model."""
    shape_fits = (
        config.head_dim % 32 == 0
        and config.group_size <= _MAX_GROUP
        and config.width % 2 == 0
        and config.mlp_width % 2 == 0
    )
    return shape_fits and dtype == torch.bfloat16 and device.type == "cpu" and library() is not None


class NativeKernels:
    """Implements `Kernels` for bfloat16 on the processor. Tensors are contiguous but for the heads of `turn_heads`."""

    angle_dtype = torch.float32

    def __init__(self) -> None:
        found = library()
        if found is None:
            raise RuntimeError("there are no native kernels; ask `fits` first")
        self._library = found

    def project(self, weight_NK: Tensor, bias_N: Tensor | None) -> Projection:
        """Return a projection with a copy of these weights."""
        return NativeProjection(self._library, weight_NK, bias_N)

    def head(self, weight_VD: Tensor) -> "NativeHead":
        """Return a head with a copy of these weights."""
        return NativeHead(self._library, weight_VD)

    def rms_norm(self, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        """Return `x_TD` normalised in float32 and rounded once."""
        out_TD = torch.empty_like(x_TD)
        self._library.tandem_rms_norm(
            x_TD.data_ptr(), weight_D.data_ptr(), out_TD.data_ptr(), *x_TD.shape, eps, torch.get_num_threads()
        )
        return out_TD

    def turn_heads(
        self, x_THE: Tensor, weight_E: Tensor | None, eps: float, cos_T1F: Tensor, sin_T1F: Tensor
    ) -> Tensor:
        """Normalise and turn the heads in place, in float32, and round once."""
        num_rows, heads, size = x_THE.shape
        self._library.tandem_turn_heads(
            x_THE.data_ptr(),
            _address(weight_E),
            cos_T1F.data_ptr(),
            sin_T1F.data_ptr(),
            num_rows,
            x_THE.stride(0),
            heads,
            size,
            eps,
            torch.get_num_threads(),
        )
        return x_THE

    def swiglu(self, x_TM: Tensor) -> Tensor:
        """Return silu of the first half of each row times the second half."""
        num_rows, width = x_TM.shape[0], x_TM.shape[1] // 2
        out = x_TM.new_empty(num_rows, width)
        self._library.tandem_swiglu(x_TM.data_ptr(), out.data_ptr(), num_rows, width, torch.get_num_threads())
        return out


class TileKernels(NativeKernels):
    """For processors that multiply tiles of bfloat16 (AMX): oneDNN uses them, and what vectors reach is far below."""

    def project(self, weight_NK: Tensor, bias_N: Tensor | None) -> Projection:
        """Return a projection with a copy of these weights."""
        return OneDnnProjection(weight_NK, bias_N)


class NativeAttention:
    """Attention over one cache [layers, 2 (key, value), blocks, block size, G, E]."""

    def __init__(self, kv: Tensor) -> None:
        found = library()
        if found is None:
            raise RuntimeError("there are no native kernels; ask `fits` first")
        self._attention = found.tandem_attention
        self._kv = kv
        self._addresses = [(layer[0].data_ptr(), layer[1].data_ptr()) for layer in kv]

    def plan(self, spans_S4: "array[int]", tables: "array[int]") -> Attend:
        """Return attention for one forward pass.

        Args:
            spans_S4: for each sequence its first row in the batch, its position, its length, and where in `tables` its
                blocks begin.
            tables: the blocks of all sequences, end to end.
        """
        block_size, kv_heads, size = self._kv.shape[-3:]
        num_spans = len(spans_S4) // 4

        def attend(layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
            out_THE = torch.empty(q_THE.shape, dtype=q_THE.dtype)
            self._attention(
                q_THE.data_ptr(),
                k_TGE.data_ptr(),
                v_TGE.data_ptr(),
                *self._addresses[layer],
                spans_S4.buffer_info()[0],
                tables.buffer_info()[0],
                out_THE.data_ptr(),
                q_THE.stride(0),  # the same for all three: they lie in one tensor
                num_spans,
                q_THE.shape[1],
                kv_heads,
                size,
                block_size,
                torch.get_num_threads(),
            )
            return out_THE

        return attend


class NativeProjection:
    """A projection with its weights in panels, the order in which one row or many read them front to back."""

    def __init__(self, found: ctypes.CDLL, weight_NK: Tensor, bias_N: Tensor | None) -> None:
        self._linear = found.tandem_linear
        self._num_outputs, self._num_inputs = weight_NK.shape
        self._panels_PJ64x2 = pack(weight_NK)
        self._bias_N = bias_N

    def __call__(self, x_TK: Tensor, residual_TN: Tensor | None = None) -> Tensor:
        """Return the outputs [T, N], `residual_TN` added before the one rounding."""
        out_TN = torch.empty(len(x_TK), self._num_outputs, dtype=torch.bfloat16)
        self._multiply(x_TK, residual_TN, out_TN)
        return out_TN

    def _multiply(self, x_TK: Tensor, residual_TN: Tensor | None, out_TN: Tensor) -> None:
        self._linear(
            x_TK.data_ptr(),
            self._panels_PJ64x2.data_ptr(),
            _address(self._bias_N),
            _address(residual_TN),
            out_TN.data_ptr(),
            len(x_TK),
            self._num_inputs,
            self._num_outputs,
            out_TN.dtype == torch.float32,
            torch.get_num_threads(),
        )


class NativeHead(NativeProjection):
    """A head in panels, from which embeddings are read, too, so that a tied one is held once."""

    def __init__(self, found: ctypes.CDLL, weight_VD: Tensor) -> None:
        super().__init__(found, weight_VD, None)
        # Kept from step to step: the system hands out so large a piece of memory page by page, each time anew.
        self._logits_TV = torch.empty(0, self._num_outputs)

    def logits(self, x_TD: Tensor) -> Tensor:
        """Return [T, V], which the next call overwrites.

        In float32, as they were summed: bfloat16 makes many equal that are not.
        """
        if len(x_TD) > len(self._logits_TV):
            self._logits_TV = torch.empty(len(x_TD), self._num_outputs)
        logits_TV = self._logits_TV[: len(x_TD)]
        self._multiply(x_TD, None, logits_TV)
        return logits_TV

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the rows [..., D] of `token_ids`."""
        return self._panels_PJ64x2[token_ids // _PANEL, :, token_ids % _PANEL].flatten(-2).contiguous()


def largest(logits_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest logit of each row [B], NaN where any is NaN, and the first token that has it [B].

    torch does the same where this cannot, some ten times slower: it looks for places one by one.
    """
    found = library() if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32 else None
    if found is None or not logits_BV.is_contiguous():
        return logits_BV.max(dim=-1)
    num_rows, vocab_size = logits_BV.shape
    values_B, tokens_B = torch.empty(num_rows), torch.empty(num_rows, dtype=torch.int64)
    found.tandem_largest(
        logits_BV.data_ptr(),
        values_B.data_ptr(),
        tokens_B.data_ptr(),
        num_rows,
        vocab_size,
        torch.get_num_threads(),
    )
    return values_B, tokens_B


def pack(weight_NK: Tensor) -> Tensor:
    """Return a weight, filled up with zeros to whole panels, as [P, J, 64, 2]."""
    num_outputs, num_inputs = weight_NK.shape
    missing = -num_outputs % _PANEL
    whole_NK = functional.pad(weight_NK, (0, 0, 0, missing)) if missing else weight_NK  # a large one is copied once
    pairs_PJ64x2 = whole_NK.view(-1, _PANEL, num_inputs // 2, 2).transpose(1, 2)
    return huge_pages.empty(pairs_PJ64x2.shape, weight_NK.dtype).copy_(pairs_PJ64x2)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
