"""Link, copy and hash the weight files of an import.

Needs no torch, except for `.bin` files.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from chassis.errors import FailedPrecondition
from checkpoint.hub_folder import HubFolder
from checkpoint.import_state import Fingerprint, TensorRecord, WeightRecord
from checkpoint.manifest import file_sha256
from checkpoint.stored_tensor import StoredTensor, tensor_digest
from checkpoint.weight_files import open_files

_CHUNK_BYTES = 16 * 1024 * 1024  # of a file that is copied

# Called with the number of bytes that were copied or hashed since the last call.
OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A weight file, and its place in the new checkpoint."""

    name: str
    source: Path  # the file itself, not a link to it
    target: Path
    tensors: tuple[str, ...]  # canonical names of the tensors that the model needs

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.source.stat().st_size

    def is_linked(self) -> bool:
        """Return whether source and target are one file."""
        return self.target.exists() and self.target.samefile(self.source)

    def is_done(self, record: WeightRecord | None, *, copy: bool) -> bool:
        """Return whether the target is complete and hashed.

        Args:
            record: of an earlier import.
            copy: whether the target must not be a link.
        """
        if record is None or not self.target.is_file() or (copy and self.is_linked()):
            return False
        unchanged = record.source == Fingerprint.of(self.source)
        complete = self.target.stat().st_size == self.num_bytes and set(self.tensors) <= record.tensors.keys()
        return unchanged and complete


def plan(hub: HubFolder, folder: Path) -> list[WeightFile]:
    """Return the weight files of a Hub folder.

    Args:
        hub: the Hub folder.
        folder: of the new checkpoint.
    """
    tensors: dict[str, list[str]] = {}
    for spec in hub.specs:
        tensors.setdefault(hub.weights.file_of(spec.name), []).append(spec.name)
    return [
        WeightFile(name, path.resolve(), folder / name, tuple(tensors.get(name, ())))  # the Hub's cache holds links
        for name, path in sorted(hub.weights.paths().items())
    ]


def link(file: WeightFile) -> None:
    """Make a hard link if that is possible.

    It is not on another file system, on one without links, and for some files of other users.
    """
    with suppress(OSError):
        os.link(file.source, file.target)


def copy_file(file: WeightFile, on_bytes: OnBytes) -> None:
    """Copy a file.

    Raises:
        FileExistsError: the target exists. It could be a link, and the copy would then replace the source.
    """
    with file.source.open("rb", buffering=0) as source, file.target.open("xb") as target:
        while chunk := source.read(_CHUNK_BYTES):
            target.write(chunk)
            on_bytes(len(chunk))
        target.flush()
        os.fsync(target.fileno())  # the hashes are kept, so the bytes must survive a power failure too


def hash_file(file: WeightFile, before: Fingerprint, on_bytes: OnBytes) -> WeightRecord:
    """Hash a file and its tensors, side by side.

    Args:
        file: in its place.
        before: the source's fingerprint, taken before it was copied.
        on_bytes: reports progress.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the source was changed meanwhile.
    """
    stored = open_files([file.target])
    pool = ThreadPoolExecutor(1)  # hashing holds no lock
    try:
        digests = {name: pool.submit(_digest, stored[name]) for name in file.tensors}
        sha256 = file_sha256(file.target, on_bytes)
        tensors = {name: digest.result() for name, digest in digests.items()}
    finally:
        pool.shutdown(cancel_futures=True)
    if Fingerprint.of(file.source) != before:
        raise FailedPrecondition(
            f"The file {file.name} was changed during the import: import again.", reason="BAD_CHECKPOINT"
        )
    return WeightRecord(source=before, sha256=sha256, tensors=tensors)


def _digest(tensor: StoredTensor) -> TensorRecord:
    digest = tensor_digest(tensor)
    tensor.drop_pages()
    return TensorRecord.of(digest)
