"""Choose the kernels of a decoder.

The engine chooses no kernels.
"""

from functools import partial
from importlib.util import find_spec
from typing import Literal

import structlog
import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.kernels.interface import Kernels
from language_service.kernels.library import SETS, NativeLibrary, SetName, library, open_library, takes
from language_service.kernels.native import NativeKernels
from language_service.kernels.native_attention import NativeAttention
from language_service.kernels.plain import OneDnnKernels, PlainKernels
from language_service.kernels.trial import gives_right_numbers

KernelName = Literal["auto", SetName, "plain"]

_log = structlog.get_logger()

_MAX_ERROR = 3e-2  # of the largest number. Rounding to bfloat16 makes errors near 8e-3.


def choose_kernels(
    config: LanguageConfig, dtype: torch.dtype, device: torch.device, name: KernelName = "auto"
) -> Kernels:
    """Return the kernels for this model on this device.

    Args:
        config: shape of the model.
        dtype: of the weights.
        device: of the weights.
        name: the setting `--kernels`. 'auto' takes the fastest, 'plain' those of torch.

    Raises:
        ValueError: the named kernels cannot compute this model here.
    """
    native = choose_library(config, dtype, device, name)
    if native is not None:
        return NativeKernels(native)
    if dtype == torch.bfloat16 and device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return OneDnnKernels(dtype)
    triton = open_triton_kernels(config, dtype, device) if device.type == "cuda" and name == "auto" else None
    return triton or PlainKernels(dtype)


def choose_library(
    config: LanguageConfig, dtype: torch.dtype, device: torch.device, name: KernelName = "auto"
) -> NativeLibrary | None:
    """Return the compiled kernels for a model.

    None if torch computes it. One choice serves all of a model: instruction sets round differently.

    Raises:
        ValueError: as `choose_kernels`.
    """
    if name == "auto":
        if not takes(dtype, device):
            return None
        found = next((each for each in map(library, SETS) if each is not None and each.fits(config)), None)
        if found is None:
            _log.info("native kernels not used", reason=_why_none())
        return found
    if name == "plain":
        return None
    if not takes(dtype, device):
        raise ValueError(f"The kernels {name} compute bfloat16 on the CPU only, choose --kernels auto.")
    try:
        named = open_library(name)
    except OSError as error:
        raise ValueError(f"The kernels {name} cannot run here: {error}. Choose --kernels auto.") from error
    if not named.fits(config):
        raise ValueError(f"The kernels {name} cannot compute a model of this shape, choose --kernels auto.")
    return named


def _why_none() -> str:
    """Return why no compiled kernels compute a model."""
    reasons = set()
    for name in SETS:
        try:
            open_library(name)
        except OSError as error:
            reasons.add(str(error))
        else:
            return "they do not take a model of this shape"
    return "; ".join(sorted(reasons))


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
    error = partial(largest_error, dtype, device, config.head_dim, kernels)
    return kernels if gives_right_numbers("triton kernels", error, _MAX_ERROR) else None


def choose_attention(config: LanguageConfig, kv: Tensor, name: KernelName = "auto") -> NativeAttention | None:
    """Return attention that reads cache blocks in place.

    Returns None if only torch can compute it.

    Args:
        config: shape of the model.
        kv: the cache, [layers, 2 (key, value), blocks, block size, key-value heads, head dim].
        name: as for `choose_kernels`.

    Raises:
        ValueError: as `choose_kernels`.
    """
    native = choose_library(config, kv.dtype, kv.device, name)
    return None if native is None else NativeAttention(kv, native)
