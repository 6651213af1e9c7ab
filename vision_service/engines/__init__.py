"""TensorRT engines: the library, building, and the files on disk."""

from vision_service.engines.building import BuiltEngine, LoadedEngine, ShapeRange, build_engine, load_engine
from vision_service.engines.files import (
    ENGINES_FOLDER,
    EngineKey,
    EngineRecord,
    find_engine,
    read_timing_cache,
    save_engine,
)
from vision_service.engines.library import Library, open_library, without_collection

__all__ = [
    "ENGINES_FOLDER",
    "BuiltEngine",
    "EngineKey",
    "EngineRecord",
    "Library",
    "LoadedEngine",
    "ShapeRange",
    "build_engine",
    "find_engine",
    "load_engine",
    "open_library",
    "read_timing_cache",
    "save_engine",
    "without_collection",
]
