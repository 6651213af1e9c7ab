"""Verify a whole checkpoint: every file and both halves against the manifest."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chassis.errors import DataLoss
from checkpoint.config import read_config
from checkpoint.identity import half_digest
from checkpoint.layout import HALVES, Half
from checkpoint.manifest import MANIFEST_FILE, Manifest, file_sha256, read_manifest
from checkpoint.weight_files import open_folder
from checkpoint.weights import check_weights, tensor_digest


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the answer: what was looked at and what is wrong with it, if anything is."""

    what: str  # a file's name or '<half> half'
    num_bytes: int
    digest: bytes | None  # as found, 32 bytes; None where there is nothing to hash
    problem: str | None


def verify(folder: Path, on_check: Callable[[Check], None] | None = None) -> list[Check]:
    """Hash all files of a checkpoint, and then both halves if the files are right.

    A problem is an entry of the list, not an exception, so that one run names them all.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, there is no manifest to verify against; or what `load_half` raises for
            names and shapes, if the files are those of the manifest and yet do not make a model.
    """
    manifest = read_manifest(folder)
    checks: list[Check] = []

    def add(check: Check) -> None:
        checks.append(check)
        if on_check:
            on_check(check)

    for name in sorted(manifest.files):
        add(_check_file(folder, manifest, name))
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_FILE and path.name not in manifest.files:
            add(Check(path.name, path.lstat().st_size, None, "is not named by the manifest"))
    if all(check.problem is None for check in checks):
        for half in HALVES:
            add(_check_half(folder, manifest, half))
    return checks


def raise_for_problems(tag: str, checks: list[Check]) -> None:
    """Turn problems into one error.

    Raises:
        DataLoss: DIGEST_MISMATCH, something is not what the manifest says.
    """
    problems = [f"{check.what} {check.problem}" for check in checks if check.problem]
    if problems:
        raise DataLoss(
            f"Checkpoint {tag} is not what its manifest says: {'; '.join(problems)}.", reason="DIGEST_MISMATCH"
        )


def _check_file(folder: Path, manifest: Manifest, name: str) -> Check:
    path = folder / name
    if not path.is_file():
        return Check(name, 0, None, "is missing")
    digest = file_sha256(path)
    return Check(name, path.stat().st_size, digest, None if digest == manifest.files[name] else "was changed")


def _check_half(folder: Path, manifest: Manifest, half: Half) -> Check:
    config, files = read_config(folder), open_folder(folder)
    specs = check_weights(files, config, [half], folder.name)
    digests = {spec.name: tensor_digest(files[spec.name].contiguous()) for spec in specs}
    num_bytes = sum(files[spec.name].nbytes for spec in specs)
    digest = half_digest(config, half, digests)
    problem = None if digest == manifest.half_digest(half) else "has another digest"
    return Check(f"{half} half", num_bytes, digest, problem)
