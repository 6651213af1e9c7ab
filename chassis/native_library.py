"""Open the compiled library of a room. Needs torch."""

import ctypes
from importlib.util import find_spec

import torch

NEEDED = ("avx512_f", "avx512_bw", "avx512_dq", "avx512_vl", "avx512_bf16")  # setup.py compiles for them


def open_native_library(room: str) -> ctypes.CDLL:
    """Open the library that `setup.py` builds for a room.

    Args:
        room: dotted name of the folder with the sources, for example 'language_service.kernels'.

    Raises:
        OSError: it was not built, or was built for another processor or system.
    """
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)
    if get_capabilities is None:  # older than torch 2.13
        raise OSError("this torch does not tell the processor's instructions")
    capabilities = get_capabilities()
    if missing := [name for name in NEEDED if not capabilities.get(name)]:
        raise OSError(f"the processor lacks {', '.join(missing)}")
    spec = find_spec(f"{room}._native")
    if spec is None or spec.origin is None:
        raise OSError("not built: install a C++ compiler, then reinstall the package")
    # Opened by path, not imported: it has plain functions, which ctypes calls without the interpreter's lock.
    return ctypes.CDLL(spec.origin)
