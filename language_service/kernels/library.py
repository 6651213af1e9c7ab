"""The compiled kernels, where the processor can run them.

Built with the package where a compiler is there; where it was not, or they cannot be run here, torch does the same.
"""

import ctypes
from functools import cache
from importlib.util import find_spec

import structlog
import torch
from torch import Tensor

from checkpoint.config import LanguageConfig

_log = structlog.get_logger()

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
    "tandem_layers": [*[_POINTER] * 3, _INT],
}


@cache
def library() -> ctypes.CDLL | None:
    """Return the compiled kernels, None where they cannot be used; the log says so once."""
    try:
        found = _open()
    except OSError as error:
        _log.info("native kernels are not used", reason=str(error))
        return None
    for name, signature in _SIGNATURES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = signature, None
    return found


def _open() -> ctypes.CDLL:
    """Open the compiled kernels.

    Raises:
        OSError: they were not built, or are not for this processor or this system.
    """
    capabilities = torch.cpu.get_capabilities()
    if lacking := [name for name in _NEEDED if not capabilities.get(name)]:
        raise OSError(f"the processor lacks {', '.join(lacking)}")
    spec = find_spec("language_service.kernels._native")
    if spec is None or spec.origin is None:
        raise OSError("they were not built")
    # By path and not imported: it holds plain functions, called without the interpreter's lock.
    return ctypes.CDLL(spec.origin)


def require() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises:
        RuntimeError: there are none; `fits` tells beforehand.
    """
    found = library()
    if found is None:
        raise RuntimeError("there are no native kernels")
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


def address(tensor: Tensor | None) -> int | None:
    """Return where a tensor's numbers begin, None for none."""
    return None if tensor is None else tensor.data_ptr()
