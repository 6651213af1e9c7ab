"""Exports for GPUs and Triton, whose libraries are imported when one runs."""

from pathlib import Path

from vision_service.engines import EngineRecord
from vision_service.exporting.export import OnStep
from vision_service.exporting.target import ExportOptions
from vision_service.exporting.triton_settings import TritonSettings


def export_tensorrt(folder: Path, options: ExportOptions, on_step: OnStep = lambda _: None) -> EngineRecord:
    """Build the engine of a checkpoint, see `vision_service.exporting.tensorrt`."""
    from vision_service.exporting import tensorrt

    return tensorrt.export_tensorrt(folder, options, on_step)


def export_triton(
    folder: Path,
    repository: Path,
    settings: TritonSettings,
    options: ExportOptions,
    on_step: OnStep = lambda _: None,
) -> Path:
    """Add a checkpoint to a repository, see `vision_service.exporting.triton_repository`."""
    from vision_service.exporting import triton_repository

    return triton_repository.export_triton(folder, repository, settings, options, on_step)
