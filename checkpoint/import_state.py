"""Store the state of unfinished imports. Needs no torch."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError

from chassis.atomic_file import write_atomically
from chassis.errors import FailedPrecondition
from checkpoint.identity import TensorDigest
from checkpoint.manifest import Digest, Record
from checkpoint.store import ModelStore

_STATE_FILE = "state.json"


class Fingerprint(Record):
    """Detects that a source file was changed or replaced."""

    num_bytes: int
    mtime_ns: int
    device: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Return the fingerprint of a file."""
        stat = path.stat()
        return cls(num_bytes=stat.st_size, mtime_ns=stat.st_mtime_ns, device=stat.st_dev, inode=stat.st_ino)


class TensorRecord(Record):
    """The digest of one tensor, see `TensorDigest`."""

    dtype: str
    shape: tuple[int, ...]
    sha256: Digest

    @classmethod
    def of(cls, digest: TensorDigest) -> Self:
        """Return the record of a digest."""
        return cls(dtype=digest.dtype, shape=digest.shape, sha256=digest.sha256)

    def digest(self) -> TensorDigest:
        """Return the digest."""
        return TensorDigest(self.dtype, self.shape, self.sha256)


class WeightRecord(Record):
    """The hashes of one weight file."""

    source: Fingerprint
    sha256: Digest
    tensors: dict[str, TensorRecord]  # by canonical name


class _State(Record):
    files: dict[str, WeightRecord] = Field(default_factory=dict)


class UnfinishedImport:
    """The folder of a checkpoint that is being imported.

    `.TAG.import` of the model store holds the checkpoint's folder and the state file.
    """

    def __init__(self, store: ModelStore, tag: str) -> None:
        self._store, self._tag = store, tag
        self.root = store.root / f".{tag}.import"
        self.folder = self.root / "checkpoint"
        self.records: dict[str, WeightRecord] = {}

    @classmethod
    @contextmanager
    def open(cls, store: ModelStore, tag: str) -> Iterator[Self]:
        """Start or continue the import of a tag.

        Raises:
            FailedPrecondition: TAG_EXISTS. IMPORT_RUNNING, another process imports the same tag.
        """
        unfinished = cls(store, tag)
        store.new_folder(tag)
        unfinished.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(unfinished.root, os.O_RDONLY)
        try:
            _lock(lock, tag)
            unfinished.records = unfinished._read()
            yield unfinished
        finally:
            os.close(lock)  # also unlocks, as the end of the process does

    def save(self, name: str, record: WeightRecord) -> None:
        """Remember the hashes of a file."""
        self.records[name] = record
        write_atomically(self.root / _STATE_FILE, _State(files=self.records).model_dump_json().encode())

    def finish(self) -> Path:
        """Give the folder its tag as name, and return it.

        Raises:
            FailedPrecondition: TAG_EXISTS, another process has made it in the meantime.
        """
        try:
            return self.folder.rename(self._store.new_folder(self._tag))
        finally:
            shutil.rmtree(self.root, ignore_errors=True)

    def _read(self) -> dict[str, WeightRecord]:
        try:
            return dict(_State.model_validate_json((self.root / _STATE_FILE).read_bytes()).files)
        except (FileNotFoundError, ValidationError):  # damaged by a power failure: hash all files again
            return {}


def _lock(descriptor: int, tag: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FailedPrecondition(
            f"Another process is importing {tag}: wait for its end.", reason="IMPORT_RUNNING", field="tag"
        ) from None
