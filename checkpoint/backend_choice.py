"""Record the fastest backend of a release for all replicas.

Replicas with different backends cannot share visual tokens, so each release is measured once. Needs no torch.
"""

import os
import tempfile
from pathlib import Path

from pydantic import Field, ValidationError

from chassis.errors import FailedPrecondition, NotFound
from chassis.validation import first_problem
from checkpoint.exports import EXPORTS_FOLDER, Precision
from checkpoint.manifest import Digest, Record


class BackendChoice(Record):
    """The fastest backend for one kind of device."""

    vision_digest: Digest  # of the vision half that was measured
    device_type: str = Field(pattern="^(cpu|cuda)$")
    device: str  # name of the processor or GPU that was measured
    precision: Precision
    backend: str
    images_per_s: dict[str, float]  # of each backend that could be measured
    skipped: dict[str, str] = Field(default_factory=dict)  # reasons of those that could not, by name

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return choice_file(self.device_type, self.precision)


def choice_file(device_type: str, precision: Precision) -> str:
    """Return the name of a choice's file."""
    return f"backend-{device_type}-{precision}.json"


def read_choice(folder: Path, device_type: str, precision: Precision, *, vision_digest: bytes) -> BackendChoice:
    """Read the recorded choice of a checkpoint.

    Raises:
        NotFound: NO_BACKEND_CHOICE, nothing was recorded for this device and precision.
        FailedPrecondition: BAD_EXPORT, the record is not valid, or of other weights.
    """
    name = choice_file(device_type, precision)
    try:
        choice = BackendChoice.model_validate_json((folder / EXPORTS_FOLDER / name).read_bytes())
    except OSError:
        raise NotFound(
            f"No backend of {folder.name} is recorded for {device_type} in {precision}: record one with "
            f"`tandem checkpoint choose-backend {folder.name}`, or name a backend.",
            reason="NO_BACKEND_CHOICE",
        ) from None
    except ValidationError as error:
        raise _bad(folder, name, f"is not valid ({first_problem(error)})") from error
    if choice.vision_digest != vision_digest:
        raise _bad(folder, name, "is of other weights")
    return choice


def write_choice(choice: BackendChoice, folder: Path, *, replace: bool = False) -> None:
    """Record a choice beside its checkpoint.

    Raises:
        FailedPrecondition: CHOICE_EXISTS, another process has recorded one meanwhile.
    """
    exports = folder / EXPORTS_FOLDER
    exports.mkdir(exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{choice.file_name}.", dir=exports)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(choice.model_dump_json(indent=2) + "\n")
        Path(partial).chmod(0o644)
        if replace:
            Path(partial).rename(exports / choice.file_name)
        else:
            os.link(partial, exports / choice.file_name)  # fails if the file exists
    except FileExistsError:
        raise FailedPrecondition(
            f"A backend of {folder.name} is recorded already: pass --replace to measure again.", reason="CHOICE_EXISTS"
        ) from None
    finally:
        Path(partial).unlink(missing_ok=True)


def _bad(folder: Path, name: str, problem: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"The file {EXPORTS_FOLDER}/{name} of {folder.name} {problem}: choose the backend again.", reason="BAD_EXPORT"
    )
