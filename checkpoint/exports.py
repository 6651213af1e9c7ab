"""Vision halves in the form of another library.

An export is the folder `exports/<kind>-<precision>` of a checkpoint, with the record `export.json`. The record names
the weights it was made of, so a backend can never load an export of other weights. The manifest does not change. Needs
no torch.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import AfterValidator, Field, ValidationError, model_validator

from chassis.errors import DataLoss, FailedPrecondition, NotFound
from chassis.validation import first_problem
from checkpoint.manifest import Digest, Record, file_sha256, is_plain_name

EXPORTS_FOLDER = "exports"
EXPORT_FILE = "export.json"

ExportKind = Literal["onnx", "openvino"]
Precision = Literal["float32", "float16", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def _check_file_name(name: str) -> str:
    if not is_plain_name(name) or name == EXPORT_FILE:
        raise ValueError(f"{name!r} is not the name of a file in the folder")
    return name


class Range(Record):
    """Sizes of a dynamic dimension."""

    min: int = Field(ge=1)
    best: int = Field(ge=1)  # the size to optimise for
    max: int | None = None  # None is unlimited

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse sizes out of order."""
        if self.best < self.min or (self.max is not None and self.max < self.best):
            raise ValueError("min, best and max must ascend")
        return self


class Profile(Record):
    """Input sizes that an export takes."""

    batch: Range  # images of one run
    patches: Range | None = None  # of each image. None if all images have the same size


class Export(Record):
    """The record of one export."""

    kind: ExportKind
    precision: Precision  # of weights and arithmetic
    vision_digest: Digest  # of the vision half it was made of
    files: dict[Annotated[str, AfterValidator(_check_file_name)], Digest]  # SHA-256 by name
    tools: dict[str, str]  # versions of the libraries that made it, by name
    opset: int | None = None  # of ONNX, if the graph was one
    profile: Profile
    # Of visual tokens, compared with torch in float32: relative to the largest and to the mean magnitude.
    max_error: float = Field(ge=0, allow_inf_nan=False)
    mean_error: float = Field(ge=0, allow_inf_nan=False)

    @property
    def name(self) -> str:
        """Name of its folder."""
        return export_name(self.kind, self.precision)

    @property
    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of the record."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(b"tandem/export/1\0" + canonical.encode()).digest()


def export_name(kind: ExportKind, precision: Precision) -> str:
    """Return the name of an export's folder."""
    return f"{kind}-{precision}"


def export_folder(folder: Path, kind: ExportKind, precision: Precision) -> Path:
    """Return the folder of an export, which may not exist."""
    return folder / EXPORTS_FOLDER / export_name(kind, precision)


def export_folders(folder: Path) -> list[Path]:
    """Return the folders of all exports of a checkpoint, sorted."""
    exports = folder / EXPORTS_FOLDER
    entries = exports.iterdir() if exports.is_dir() else ()
    return sorted(entry for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def read_export(
    folder: Path,
    kind: ExportKind,
    precision: Precision,
    *,
    vision_digest: bytes,
    tools: Mapping[str, str] | None = None,
    with_files: bool = True,
) -> Export:
    """Read the record of an export and verify its files.

    Args:
        folder: of the checkpoint.
        kind: of the export.
        precision: of the export.
        vision_digest: of the checkpoint's vision half, 32 bytes.
        tools: versions that must be those of the record, for exports that other versions cannot use.
        with_files: False for an export that runs elsewhere. Its files are neither needed nor verified.

    Raises:
        NotFound: NO_EXPORT, there is no such export.
        FailedPrecondition: BAD_EXPORT, the record is not valid, or the export has other weights or tool versions, or
            lacks a file.
        DataLoss: DIGEST_MISMATCH, a file was changed or cut short.
    """
    place = export_folder(folder, kind, precision)
    if not (place / EXPORT_FILE).is_file():
        raise NotFound(
            f"Checkpoint {folder.name} has no export for {kind} in {precision}: make it with `tandem checkpoint export "
            f"{folder.name} --to {kind} --precision {precision}`.",
            reason="NO_EXPORT",
        )
    export = read_record(place)
    if export.name != place.name:
        raise _bad(place, f"its record is that of {export.name}")
    if export.vision_digest != vision_digest:
        raise _bad(place, "it was made of other weights")
    for tool, version in (tools or {}).items():
        made_by = export.tools.get(tool)
        if made_by != version:
            raise _bad(place, f"it was made by {tool} {made_by or 'of unknown version'}, and this is {version}")
    for name in export.files if with_files else ():
        verify_file(place, export, name)
    return export


def read_record(place: Path) -> Export:
    """Read `export.json` of an export's folder, without its files.

    Raises:
        FailedPrecondition: BAD_EXPORT, the record is missing or not valid.
    """
    try:
        return Export.model_validate_json((place / EXPORT_FILE).read_bytes())
    except OSError as error:
        raise _bad(place, f"it has no readable {EXPORT_FILE}") from error
    except ValidationError as error:
        raise _bad(place, f"its {EXPORT_FILE} is not valid ({first_problem(error)})") from error


def verify_file(place: Path, export: Export, name: str) -> None:
    """Compare one file of an export with its record.

    Raises:
        FailedPrecondition: BAD_EXPORT, the file is missing.
        DataLoss: DIGEST_MISMATCH, the file was changed or cut short.
    """
    try:
        found = file_sha256(place / name)
    except OSError as error:
        raise _bad(place, f"it lacks {name}") from error
    if found != export.files[name]:
        raise DataLoss(
            f"The file {name} of the export {place.name} is not the one its record names: export again.",
            reason="DIGEST_MISMATCH",
        )


@contextmanager
def new_export(folder: Path, kind: ExportKind, precision: Precision, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder that becomes an export.

    An export appears complete or not at all: the folder has a temporary name until the block ends without an error.
    The block writes the files, then the record with `write_record`.

    Args:
        folder: of the checkpoint.
        kind: of the export.
        precision: of the export.
        replace: whether an existing export is replaced.

    Raises:
        FailedPrecondition: EXPORT_EXISTS.
    """
    target = export_folder(folder, kind, precision)
    if target.exists() and not replace:
        raise FailedPrecondition(
            f"Checkpoint {folder.name} has an export {target.name} already: pass --replace to make it again.",
            reason="EXPORT_EXISTS",
        )
    target.parent.mkdir(exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    replaced = partial.with_suffix(".replaced")
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it readable by its owner only
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


def write_record(export: Export, place: Path) -> None:
    """Write `export.json`, the last file of an export."""
    (place / EXPORT_FILE).write_text(export.model_dump_json(indent=2) + "\n")


def hash_files(place: Path) -> dict[str, bytes]:
    """Return the SHA-256 of each file by name."""
    return {path.name: file_sha256(path) for path in sorted(place.iterdir())}


def _bad(place: Path, problem: str) -> FailedPrecondition:
    message = f"The export {place.name} of {place.parents[1].name} cannot be used: {problem}; export again."
    return FailedPrecondition(message, reason="BAD_EXPORT")
