"""Export a vision half, and refuse an export that is not exact."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from checkpoint.exports import Export, ExportKind, hash_files, new_export, write_record
from checkpoint.weights import load_half
from processing import open_image_processor
from vision_service.exporting.comparison import BOUNDS, Errors, Samples, compare, reference_tokens, sample_images
from vision_service.exporting.target import ExportOptions, ExportTarget, Written

OnStep = Callable[[str], None]  # called with the name of each step


@dataclass(frozen=True, slots=True)
class Exported:
    """A new export."""

    export: Export
    errors: Errors
    num_bytes: int  # of its files

    @property
    def bounds(self) -> tuple[float, float]:
        """The largest and the mean error that are allowed."""
        return BOUNDS[self.export.precision]


def export_vision(folder: Path, kind: ExportKind, options: ExportOptions, on_step: OnStep = lambda _: None) -> Exported:
    """Export a vision half and compare it with torch.

    Takes the memory of the half twice: in the export's precision, and then in float32.

    Args:
        folder: of the checkpoint.
        kind: of the export.
        options: how to export.
        on_step: called at the start of each step.

    Raises:
        FailedPrecondition: EXPORT_EXISTS. EXPORT_INEXACT, its results differ too much from torch in float32. Also the
            errors of `load_half`.
    """
    target = _open_target(kind)
    with new_export(folder, kind, options.precision, replace=options.replace) as place:
        on_step(f"exporting to {kind}")
        written, digest = _write(target, folder, place, options)
        on_step("comparing with torch in float32")
        gc.collect()  # the traced graph has cycles that keep its weights
        errors = compare(target.open(place, options), exact_samples(folder, options))
        errors.check(options.precision, f"export to {kind} in {options.precision}")
        on_step("hashing")
        export = Export(
            kind=kind,
            precision=options.precision,
            vision_digest=digest,
            files=hash_files(place),
            tools=written.tools,
            opset=written.opset,
            profile=written.profile,
            max_error=errors.max_error,
            mean_error=errors.mean_error,
        )
        num_bytes = sum(path.stat().st_size for path in place.iterdir())
        write_record(export, place)
    return Exported(export, errors, num_bytes)


def _open_target(kind: ExportKind) -> ExportTarget:
    # Imported on demand, so that a target needs its own libraries only.
    match kind:
        case "onnx":
            from vision_service.exporting.onnx_target import OnnxTarget

            return OnnxTarget()
        case "openvino":
            from vision_service.exporting.openvino_target import OpenVinoTarget

            return OpenVinoTarget()
    raise ValueError(f"there is no export to {kind!r}")


def _write(target: ExportTarget, folder: Path, place: Path, options: ExportOptions) -> tuple[Written, bytes]:
    half = load_half(folder, "vision", dtype=getattr(torch, options.precision))
    written = target.write(half, place, options)
    return written, half.digest


def exact_samples(folder: Path, options: ExportOptions) -> Samples:
    """Return images with their visual tokens by torch in float32."""
    half = load_half(folder, "vision", dtype=torch.float32)
    processor = open_image_processor(half.config, max_pixels=options.max_resized_pixels)
    images = sample_images(processor, options.images)
    return Samples(half.config, images, reference_tokens(half.config, half.tensors, images))
