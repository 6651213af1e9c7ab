"""Call compiled libraries: those of rooms, and C's."""

import ctypes
from importlib.util import find_spec
from typing import Any

_M_ARENA_MAX = -8  # of glibc's malloc.h


def return_free_memory() -> None:
    """Return freed memory of C's library to the system.

    Without it, glibc keeps what large messages have taken. Other libraries than glibc have no such call.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def use_one_heap() -> None:
    """Make all threads allocate from one heap of C's library.

    glibc has a heap for each few threads, and free memory of one is not used by others. gRPC receives with several
    threads and frees in another, so each heap would grow to the largest messages that it has seen. Call it before
    threads start. Other libraries than glibc have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def open_native_library(room: str) -> ctypes.CDLL:
    """Open the library that `setup.py` builds for a room.

    Args:
        room: dotted name of the folder with the sources, for example 'language_service.kernels'.

    Raises:
        OSError: it was not built, or was built for another system.
    """
    spec = find_spec(f"{room}._native")
    if spec is None or spec.origin is None:
        raise OSError("not built: install a C++ compiler, then reinstall the package")
    # Opened by path, not imported: it has plain functions, which ctypes calls without the interpreter's lock.
    return ctypes.CDLL(spec.origin)


def find_functions(opened: ctypes.CDLL, instruction_set: str, *names: str) -> list[Any]:
    """Return functions of ctypes for one instruction set.

    Args:
        opened: from `open_native_library`.
        instruction_set: as in `setup.py`, for example 'avx2'.
        names: of the functions, without prefix and set.

    Raises:
        OSError: the processor or the system lacks the instructions, or the compiler did not know them.
    """
    if not opened.tandem_can_run(instruction_set.encode()):
        raise OSError(f"the processor cannot run {instruction_set}")
    try:
        return [getattr(opened, f"tandem_{name}_{instruction_set}") for name in names]
    except AttributeError:
        raise OSError(f"the compiler did not know {instruction_set}") from None
