"""Read the probes in a checkpoint's folder, and add them to it."""

import hashlib
from pathlib import Path

from chassis.atomic_file import write_atomically
from chassis.errors import FailedPrecondition
from checkpoint.manifest import MANIFEST_FILE, manifest_text, read_manifest, read_verified
from checkpoint.probes import PROBES_FILE, Probes, parse_probes, read_probes_file


def read_release_probes(folder: Path) -> Probes:
    """Return a checkpoint's probes, verified. There may be none.

    Raises:
        InvalidArgument: as `parse_probes`.
        FailedPrecondition: BAD_CHECKPOINT, the file or the manifest is missing or not valid.
        DataLoss: DIGEST_MISMATCH, the file was changed.
    """
    manifest = read_manifest(folder)
    if PROBES_FILE not in manifest.files:
        return Probes()
    content = read_verified(folder, manifest, PROBES_FILE)
    return parse_probes(content, lambda name: read_verified(folder, manifest, name))


def add_probes(folder: Path, source: Path) -> Probes:
    """Add probes, with their images, to a checkpoint.

    Nothing else changes, so the checkpoint keeps its weights and its digests. The manifest is replaced last.

    Args:
        folder: of the checkpoint.
        source: the file of probes. Images that it names lie beside it.

    Raises:
        FailedPrecondition: PROBES_EXIST, or BAD_CHECKPOINT for the manifest.
        InvalidArgument, FailedPrecondition: as `read_probes_file`.
    """
    manifest = read_manifest(folder)
    if PROBES_FILE in manifest.files:
        raise FailedPrecondition(
            f"The checkpoint {folder.name} has probes already: releases are never changed.", reason="PROBES_EXIST"
        )
    probes = read_probes_file(source)
    added = {PROBES_FILE: source.read_bytes()}
    added |= {name: (source.parent / name).read_bytes() for name in probes.files}
    taken = sorted(added.keys() & manifest.files.keys() | {name for name in added if (folder / name).exists()})
    if taken:
        raise FailedPrecondition(
            f"The checkpoint {folder.name} has files of these names already: {', '.join(taken)}.",
            reason="PROBES_EXIST",
        )
    for name, content in added.items():
        (folder / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).digest() for name, content in added.items()}
    files = dict(sorted({**manifest.files, **digests}.items()))
    write_atomically(folder / MANIFEST_FILE, manifest_text(manifest.model_copy(update={"files": files})).encode())
    return probes
