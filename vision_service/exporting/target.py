"""Write an export in one form, and open it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from checkpoint.exports import ExportKind, Precision, Profile
from checkpoint.weights import LoadedHalf
from vision_service.model import Run


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export."""

    precision: Precision = "bfloat16"
    max_batch_size: int = 16  # images of one run, for forms with a fixed profile
    max_resized_pixels: int = 2**20  # of one image, for the same
    images: tuple[Path, ...] = ()  # files to compare the results on, besides the images made for it
    replace: bool = False  # an existing export


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """The facts of new files that the record keeps."""

    tools: dict[str, str]  # versions of the libraries by name
    profile: Profile
    opset: int | None = None  # of ONNX


class ExportTarget(Protocol):
    """Writes vision halves in one form."""

    kind: ExportKind

    def write(self, half: LoadedHalf, place: Path, options: ExportOptions) -> Written:
        """Write the files of an export.

        Args:
            half: the vision half in the export's precision.
            place: empty folder.
            options: how to export.
        """
        ...

    def open(self, place: Path, options: ExportOptions) -> Run:
        """Open the files, for the comparison with torch."""
        ...
