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
from vision_service.backends.interface import (
    BackendOptions,
    PerformanceHint,
    RemoteBackend,
    SharedMemory,
    TritonOptions,
    VisionBackend,
)
from vision_service.backends.tensorrt_backend import TensorRtGraph, check_limits, engine_key
from vision_service.backends.triton_names import digest_parameter, triton_version

__all__ = [
    "BACKENDS",
    "EXPORTS",
    "BackendName",
    "BackendOptions",
    "OpenedHalf",
    "PerformanceHint",
    "RemoteBackend",
    "SharedMemory",
    "TensorRtGraph",
    "TritonOptions",
    "VisionBackend",
    "check_limits",
    "digest_parameter",
    "engine_key",
    "library_version",
    "open_backend",
    "open_graph",
    "triton_version",
]
