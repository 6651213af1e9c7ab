"""Backends that run the vision half, chosen by `--backend`."""

from vision_service.backends.choice import (
    BACKENDS,
    EXPORTS,
    BackendName,
    OpenedHalf,
    library_version,
    open_backend,
    open_graph,
)
from vision_service.backends.interface import BackendOptions, PerformanceHint, VisionBackend

__all__ = [
    "BACKENDS",
    "EXPORTS",
    "BackendName",
    "BackendOptions",
    "OpenedHalf",
    "PerformanceHint",
    "VisionBackend",
    "library_version",
    "open_backend",
    "open_graph",
]
