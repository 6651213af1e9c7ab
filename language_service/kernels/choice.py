"""Choose the kernels of a decoder.

The engine chooses no kernels.
"""

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.kernels.interface import Kernels
from language_service.kernels.library import supports
from language_service.kernels.native import NativeKernels, TileKernels
from language_service.kernels.native_attention import NativeAttention
from language_service.kernels.plain import OneDnnKernels, PlainKernels


def choose_kernels(config: LanguageConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the fastest kernels for this model on this device."""
    if supports(config, dtype=dtype, device=device):
        return TileKernels() if torch.cpu.get_capabilities().get("amx_bf16") else NativeKernels()
    if dtype == torch.bfloat16 and device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return OneDnnKernels(dtype)
    return PlainKernels(dtype)


def choose_attention(config: LanguageConfig, kv: Tensor) -> NativeAttention | None:
    """Return attention that reads cache blocks in place.

    Returns None if only torch can compute it.

    Args:
        config: shape of the model.
        kv: the cache, [layers, 2 (key, value), blocks, block size, key-value heads, head dim].
    """
    return NativeAttention(kv) if supports(config, dtype=kv.dtype, device=kv.device) else None
