"""Verify a whole checkpoint against its manifest.

Only `.bin` weights need torch.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.checks import check_weights
from checkpoint.config import read_config
from checkpoint.exports import EXPORTS_FOLDER, export_folders, read_record
from checkpoint.families import HALVES, Half
from checkpoint.identity import TensorDigest, half_digest
from checkpoint.manifest import MANIFEST_FILE, Manifest, file_sha256, read_manifest
from checkpoint.stored_tensor import num_bytes, tensor_digest
from checkpoint.weight_files import open_folder


@dataclass(frozen=True, slots=True)
class Check:
    """The result for one file or one half."""

    subject: str  # a file's name or '<half> half'
    num_bytes: int
    digest: bytes | None  # as computed, 32 bytes. None if there is nothing to hash.
    problem: str | None  # None if it is as in the manifest


def verify(folder: Path, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Hash all files, exports and both halves of a checkpoint.

    The halves are hashed only if all files are right. Problems are part of the list, so one run names them all.

    Args:
        folder: of the checkpoint.
        on_check: called with each result as soon as it is known.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, there is no manifest. NOT_INSTALLED, the weights are `.bin` files and there
            is no torch. Also the errors of `check_weights`, if the files do not make a model.
    """
    manifest = read_manifest(folder)
    checks: list[Check] = []

    def add(check: Check) -> None:
        checks.append(check)
        if on_check:
            on_check(check)

    for name in sorted(manifest.files):
        add(_check_file(folder, manifest.files, name, subject=name))
    for path in sorted(folder.iterdir()):
        if path.name not in (MANIFEST_FILE, EXPORTS_FOLDER) and path.name not in manifest.files:
            add(Check(path.name, path.lstat().st_size, None, "is not named by the manifest"))
    for place in export_folders(folder):
        for check in _check_export(place, manifest):
            add(check)
    if all(check.problem is None for check in checks):
        for half in HALVES:
            add(_check_half(folder, manifest, half))
    return checks


def raise_for_problems(tag: str, checks: list[Check]) -> None:
    """Raise one error that names all problems, if any.

    Raises:
        DataLoss: DIGEST_MISMATCH.
    """
    problems = [f"{check.subject} {check.problem}" for check in checks if check.problem]
    if problems:
        raise DataLoss(
            f"Checkpoint {tag} is not what its manifest says: {'; '.join(problems)}.", reason="DIGEST_MISMATCH"
        )


def _check_file(folder: Path, files: Mapping[str, bytes], name: str, *, subject: str) -> Check:
    path = folder / name
    if not path.is_file():
        return Check(subject, 0, None, "is missing")
    digest = file_sha256(path)
    return Check(subject, path.stat().st_size, digest, None if digest == files[name] else "was changed")


def _check_export(place: Path, manifest: Manifest) -> Iterator[Check]:
    subject = f"{EXPORTS_FOLDER}/{place.name}"
    try:
        export = read_record(place)
    except FailedPrecondition:
        yield Check(subject, 0, None, "has no valid record")
        return
    if export.vision_digest != manifest.vision.digest:
        yield Check(subject, 0, None, "was made of other weights")
    for name in sorted(export.files):
        yield _check_file(place, export.files, name, subject=f"{subject}/{name}")


def _check_half(folder: Path, manifest: Manifest, half: Half) -> Check:
    config, files = read_config(folder), open_folder(folder)
    digests: dict[str, TensorDigest] = {}
    size = 0
    for spec in check_weights(files, config, [half], folder.name):
        tensor = files[spec.name]
        digests[spec.name] = tensor_digest(tensor)
        size += num_bytes(tensor)
        tensor.drop_pages()
    digest = half_digest(config, half, digests)
    problem = None if digest == manifest.half_digest(half) else "has another digest"
    return Check(f"{half} half", size, digest, problem)
