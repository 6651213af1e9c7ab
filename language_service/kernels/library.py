"""Open the compiled kernels, if the processor can run them.

Installing the package builds them if there is a compiler. Without them, torch computes the same.
"""

import ctypes
from functools import cache

import structlog
import torch
from torch import Tensor

from chassis.native_library import open_native_library
from checkpoint.families import LanguageConfig

_log = structlog.get_logger()

_MAX_GROUP = 96  # attention.cpp's kMaxRows
_POINTER, _LONG, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "tandem_linear": [*[_POINTER] * 5, *[_LONG] * 3, _INT, _INT],
    "tandem_rms_norm": [*[_POINTER] * 3, _LONG, _LONG, _FLOAT, _INT],
    "tandem_rotate_heads": [*[_POINTER] * 4, *[_LONG] * 4, _FLOAT, _INT],
    "tandem_swiglu": [_POINTER, _POINTER, _LONG, _LONG, _INT],
    "tandem_largest": [*[_POINTER] * 3, _LONG, _LONG, _INT],
    "tandem_attention": [*[_POINTER] * 8, *[_LONG] * 6, _INT],
    "tandem_layers": [*[_POINTER] * 3, _INT],
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, or None without them.

    Logs the reason once.
    """
    try:
        opened = open_native_library("language_service.kernels")
    except OSError as error:
        _log.info("native kernels not used", reason=str(error))
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(opened, name)
        function.argtypes, function.restype = signature, None
    return opened


def require() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        RuntimeError: they cannot be used here. `supports` returns False then.
    """
    opened = library()
    if opened is None:
        raise RuntimeError("the native kernels cannot be used here")
    return opened


def supports(config: LanguageConfig, *, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether the compiled kernels can run this model."""
    shape_supported = (
        config.head_dim % 32 == 0
        and config.group_size <= _MAX_GROUP
        and config.width % 2 == 0
        and config.mlp_width % 2 == 0
    )
    return shape_supported and dtype == torch.bfloat16 and device.type == "cpu" and library() is not None


def address(tensor: Tensor | None) -> int | None:
    """Return the address of a tensor's data."""
    return None if tensor is None else tensor.data_ptr()
