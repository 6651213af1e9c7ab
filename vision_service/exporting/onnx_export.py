"""The ONNX export that other exports are made of."""

from pathlib import Path

from chassis.errors import NotFound
from checkpoint.exports import Export, read_export
from checkpoint.manifest import read_manifest
from vision_service.exporting.export import OnStep, export_vision
from vision_service.exporting.target import ExportOptions


def onnx_export(folder: Path, options: ExportOptions, on_step: OnStep) -> Export:
    """Return a checkpoint's ONNX export, made if missing.

    Args:
        folder: of the checkpoint.
        options: the precision, and how to export.
        on_step: called at the start of each step.

    Raises:
        TandemError: as `read_export` and `export_vision`.
    """
    digest = read_manifest(folder).vision.digest
    try:
        return read_export(folder, "onnx", options.precision, vision_digest=digest)
    except NotFound:
        return export_vision(folder, "onnx", options, on_step).export
