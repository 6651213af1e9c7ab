"""Choose the kernels of a decoder.

The engine chooses no kernels.
"""

from importlib.util import find_spec

import structlog
import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.kernels.interface import Kernels
from language_service.kernels.library import supports
from language_service.kernels.native import NativeKernels, TileKernels
from language_service.kernels.native_attention import NativeAttention
from language_service.kernels.plain import OneDnnKernels, PlainKernels

_log = structlog.get_logger()

_MAX_ERROR = 3e-2  # of the largest number. Rounding to bfloat16 makes errors near 8e-3.


def choose_kernels(config: LanguageConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the fastest kernels for this model on this device."""
    if supports(config, dtype=dtype, device=device):
        return TileKernels() if torch.cpu.get_capabilities().get("amx_bf16") else NativeKernels()
    if dtype == torch.bfloat16 and device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return OneDnnKernels(dtype)
    triton = open_triton_kernels(config, dtype, device) if device.type == "cuda" else None
    return triton or PlainKernels(dtype)


def open_triton_kernels(config: LanguageConfig, dtype: torch.dtype, device: torch.device) -> Kernels | None:
    """Return the kernels in Triton.

    If they do not give the right numbers here, logs the reason and returns None.
    """
    if find_spec("triton") is None:
        _log.info("triton kernels not used", reason="Triton is not installed")
        return None
    from language_service.kernels.triton_kernels import TritonKernels, largest_error, supports

    if not supports(config.head_dim, dtype):
        _log.info("triton kernels not used", reason=f"heads of {config.head_dim} in {dtype}")
        return None
    kernels = TritonKernels(dtype)
    try:
        error = largest_error(dtype, device, config.head_dim, kernels)
    except Exception as problem:  # a compiler or driver can fail in many ways. torch computes the same.
        _log.warning("triton kernels not used", reason=str(problem)[:500])
        return None
    if not error < _MAX_ERROR:  # also if it is not a number
        _log.warning("triton kernels not used", reason=f"their numbers differ by {error:.2g}")
        return None
    return kernels


def choose_attention(config: LanguageConfig, kv: Tensor) -> NativeAttention | None:
    """Return attention that reads cache blocks in place.

    Returns None if only torch can compute it.

    Args:
        config: shape of the model.
        kv: the cache, [layers, 2 (key, value), blocks, block size, key-value heads, head dim].
    """
    return NativeAttention(kv) if supports(config, dtype=kv.dtype, device=kv.device) else None
