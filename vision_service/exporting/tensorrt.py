"""Build a TensorRT engine of an ONNX export."""

from collections.abc import Callable
from pathlib import Path

import torch

from checkpoint.exports import Export, Profile, Range, export_folder
from checkpoint.families import ModelConfig, Qwen3VLConfig
from checkpoint.manifest import read_manifest, read_verified_config
from vision_service.backends import TensorRtGraph, engine_key
from vision_service.engines import (
    ENGINES_FOLDER,
    EngineRecord,
    ShapeRange,
    build_engine,
    open_library,
    read_timing_cache,
    save_engine,
)
from vision_service.exporting.comparison import Samples, compare
from vision_service.exporting.export import OnStep, exact_samples
from vision_service.exporting.onnx_export import onnx_export
from vision_service.exporting.onnx_file import ONNX_FILE, example_images
from vision_service.exporting.target import ExportOptions
from vision_service.model import dynamic_dimensions, graph_batches

_BEST_PATCHES = 1024  # of an image of 512 x 512 pixels


def export_tensorrt(folder: Path, options: ExportOptions, on_step: OnStep = lambda _: None) -> EngineRecord:
    """Build an engine, and export to ONNX first if needed.

    Args:
        folder: of the checkpoint.
        options: how to export, and the limits of the engine.
        on_step: called at the start of each step.

    Raises:
        TandemError: as `export_vision` and `build_tensorrt`.
    """
    export = onnx_export(folder, options, on_step)
    config = read_verified_config(folder, read_manifest(folder))
    place = export_folder(folder, "onnx", options.precision)
    on_step("building the engine")
    return build_tensorrt(
        place, export, config, limited_profile(config, options), lambda: exact_samples(folder, options)
    )


def build_tensorrt(
    place: Path, export: Export, config: ModelConfig, profile: Profile, read_samples: Callable[[], Samples]
) -> EngineRecord:
    """Build an engine for this GPU, beside its ONNX export.

    With TensorRT for RTX, the engine fits every GPU and needs none. An engine built without a GPU is not compared with
    torch.

    Args:
        place: folder of the ONNX export.
        export: its record.
        config: of the model.
        profile: sizes that the engine takes, all limited.
        read_samples: returns the images to compare on. Called on a machine with a GPU only.

    Raises:
        FailedPrecondition: NO_TENSORRT, NO_GPU, ONNX_REJECTED, BAD_PROFILE, BUILD_FAILED, see `build_engine`.
            EXPORT_INEXACT, the engine differs too much from torch.
    """
    library, folder = open_library(), place / ENGINES_FOLDER
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else None
    key = engine_key(library, export.digest, device)
    ranges = shape_ranges(config, profile)
    built = build_engine(library, place / ONNX_FILE, ranges, timing_cache=read_timing_cache(folder, key))
    record = EngineRecord.of(key, ranges, built)
    if device is not None:
        errors = compare(TensorRtGraph(library, record, built.plan, device), read_samples())
        errors.check(export.precision, "engine")
        record = record.model_copy(update={"max_error": errors.max_error, "mean_error": errors.mean_error})
    save_engine(folder, record, built)
    return record


def limited_profile(config: ModelConfig, options: ExportOptions) -> Profile:
    """Return an engine's sizes from the limits of batches.

    It is fastest for full batches, of images of middle size.
    """
    batch = Range(min=1, best=options.max_batch_size, max=options.max_batch_size)
    if not isinstance(config, Qwen3VLConfig):
        return Profile(batch=batch)
    smallest, largest = config.vision.merge_size**2, options.max_resized_pixels // config.vision.patch_size**2
    return Profile(batch=batch, patches=Range(min=smallest, best=min(_BEST_PATCHES, largest), max=largest))


def shape_ranges(config: ModelConfig, profile: Profile) -> dict[str, ShapeRange]:
    """Return the accepted shapes of each input.

    Args:
        config: of the model.
        profile: sizes that the engine takes, all limited.
    """
    [example] = graph_batches(config, example_images(config))
    sizes = {"batch": profile.batch, "patches": profile.patches}

    def shape(name: str, dynamic: dict[int, str], size: str) -> tuple[int, ...]:
        lengths = enumerate(example.inputs[name].shape)
        return tuple(
            getattr(sizes[dynamic[dimension]], size) if dimension in dynamic else length
            for dimension, length in lengths
        )

    return {
        name: ShapeRange(*(shape(name, dynamic, size) for size in ("min", "best", "max")))
        for name, dynamic in dynamic_dimensions(config).items()
    }
