"""TensorRT engines: the library, building, and the files on disk."""

from vision_service.engines.building import BuiltEngine, ShapeRange, build_engine
from vision_service.engines.files import (
    ENGINES_FOLDER,
    EngineKey,
    EngineRecord,
    find_engine,
    read_timing_cache,
    save_engine,
)
from vision_service.engines.library import Library, make_logger, open_library

__all__ = [
    "ENGINES_FOLDER",
    "BuiltEngine",
    "EngineKey",
    "EngineRecord",
    "Library",
    "ShapeRange",
    "build_engine",
    "find_engine",
    "make_logger",
    "open_library",
    "read_timing_cache",
    "save_engine",
]
