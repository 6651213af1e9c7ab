"""Find the installed TensorRT library: TensorRT, or TensorRT for RTX.

Both have one Python interface. TensorRT 10, TensorRT 11 and TensorRT for RTX differ in a few names only, which this
room looks up by `hasattr`.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal, get_args

from chassis.errors import FailedPrecondition

LibraryName = Literal["tensorrt", "tensorrt_rtx"]
_PORTABLE: LibraryName = "tensorrt_rtx"


@dataclass(frozen=True, slots=True)
class Library:
    """An imported TensorRT library."""

    module: Any  # neither library has published types
    name: LibraryName
    version: str

    @property
    def is_portable(self) -> bool:
        """Whether engines fit every GPU and are built without one."""
        return self.name == _PORTABLE


def open_library(name: LibraryName | None = None) -> Library:
    """Import a TensorRT library.

    Args:
        name: the library. Default: the first that is installed, TensorRT before TensorRT for RTX.

    Raises:
        FailedPrecondition: reason 'NO_TENSORRT', it is not installed, or lacks a library of its own.
    """
    names: tuple[LibraryName, ...] = get_args(LibraryName) if name is None else (name,)
    problems = []
    for candidate in names:
        try:
            module = import_module(candidate)
        except (ImportError, OSError) as error:  # OSError: the package is there, a shared library is not
            problems.append(str(error))
            continue
        return Library(module, candidate, str(module.__version__))
    raise FailedPrecondition(
        f"TensorRT cannot be imported ({'; '.join(problems)}): install tandem-serving[tensorrt], on a machine with an "
        "NVIDIA GPU.",
        reason="NO_TENSORRT",
    )


@contextmanager
def without_collection() -> Iterator[None]:
    """Pause garbage collection while the library may log.

    It logs under a lock of its own. A collection meanwhile could free a builder or an engine, which waits for that
    lock for ever.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def make_logger(library: Library) -> Any:
    """Return a logger for the library that keeps errors.

    It has a list `errors`, oldest first. The library explains failures only through its logger.
    """
    severity = library.module.ILogger.Severity
    serious = (severity.INTERNAL_ERROR, severity.ERROR)

    class Logger(library.module.ILogger):  # type: ignore[misc, name-defined]  # a class of the imported library
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.errors.append(message)

    return Logger()
