"""The interface of rollout stores, and a local store."""

import asyncio
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chassis.errors import FailedPrecondition, Unavailable
from gateway.rollout.policy import Arm, Counts, Probing, State

_STRICT = ConfigDict(frozen=True, extra="forbid")


class Document(BaseModel):
    """A state with its version.

    Every new document has the next version.
    """

    model_config = _STRICT

    version: int = Field(default=0, ge=0)
    state: State | None = None  # None before the first rollout


class Heartbeat(BaseModel):
    """One gateway's report to the others."""

    model_config = _STRICT

    gateway: str
    version: int  # of the document it acts on
    in_use: tuple[str, ...]  # releases with requests in flight
    waiting: dict[Arm, int] = {}  # requests of the running step without a first token, by arm
    probing: Probing | None = Field(default=None, exclude_if=lambda value: value is None)  # so far, if it runs them


class RolloutStore(Protocol):
    """Keeps document, counts of the running step, and heartbeats.

    Every method raises Unavailable, reason 'ROLLOUT_STORE_UNREACHABLE', if the store cannot be reached. Reading raises
    FailedPrecondition, reason 'BAD_ROLLOUT_STATE', if the stored state is not valid.
    """

    async def read(self) -> Document:
        """Return the document."""
        ...

    async def compare_and_set(self, expected_version: int, document: Document) -> bool:
        """Replace a document of `expected_version`. Return whether it did."""
        ...

    async def add(self, window: str, counts: Counts) -> Counts:
        """Add counts of a step. Return all gateways' sums."""
        ...

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        """Report this gateway as alive. Return all living gateways."""
        ...

    async def take_lease(self, task: str, gateway: str, seconds: float, *, renew: bool = True) -> bool:
        """Take or renew a lease. Return whether it succeeded."""
        ...

    async def remember(self, texts: Mapping[str, str], seconds: float) -> None:
        """Keep texts by key, for other gateways."""
        ...

    async def recall(self, key: str) -> str | None:
        """Return a text that any gateway keeps, None if unknown."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class _File(BaseModel):
    """The content of a state file."""

    model_config = _STRICT

    document: Document
    window: str = ""
    counts: dict[str, int] = {}  # by path, see `Counts`


class FileStore:
    """The store of a single gateway, in memory or file.

    The file is always replaced as a whole, so a crash never leaves half a state.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Args:
            path: of the file, which need not exist yet. None keeps everything in memory.

        Raises:
            FailedPrecondition: reason 'BAD_ROLLOUT_STATE', the file is not valid.
        """
        self._path = path
        self._file = _File(document=Document())
        self._writing = asyncio.Lock()
        if path is not None:
            try:
                self._file = _File.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                pass  # the first write creates it
            except (OSError, ValidationError) as error:
                raise bad_state(f"The rollout state file {path.name}") from error

    async def read(self) -> Document:
        """Return the document."""
        return self._file.document

    async def compare_and_set(self, expected_version: int, document: Document) -> bool:
        """Replace a document of `expected_version`. Return whether it did."""
        async with self._writing:
            if self._file.document.version != expected_version:
                return False
            await self._replace(_File(document=document, window=self._file.window, counts=self._file.counts))
            return True

    async def add(self, window: str, counts: Counts) -> Counts:
        """Add counts of a step. Return the sums.

        Only the counts of one step are kept.
        """
        async with self._writing:
            is_new = window != self._file.window
            total = Counter({} if is_new else self._file.counts)
            added = counts.to_paths()
            if added or is_new:
                total.update(added)
                await self._replace(_File(document=self._file.document, window=window, counts=dict(total)))
            return Counts.from_paths(total)

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        """Return the heartbeat of this gateway, the only one."""
        return [own]

    async def take_lease(self, task: str, gateway: str, seconds: float, *, renew: bool = True) -> bool:
        """Return True, as this gateway is the only one."""
        return True

    async def remember(self, texts: Mapping[str, str], seconds: float) -> None:
        """Do nothing, as there is no other gateway."""

    async def recall(self, key: str) -> str | None:
        """Return None, as there is no other gateway."""
        return None

    async def close(self) -> None:
        """Do nothing, as there are no connections."""

    async def _replace(self, file: _File) -> None:
        if self._path is not None:
            try:
                await asyncio.to_thread(_write, self._path, file.model_dump_json().encode())
            except OSError as error:
                raise Unavailable(
                    f"The rollout state file cannot be written: {error.strerror}.",
                    reason="ROLLOUT_STORE_UNREACHABLE",
                    where=self._path,
                ) from error
        self._file = file  # only after the write, so memory is never ahead of the disk


def bad_state(subject: str) -> FailedPrecondition:
    """Return the error of a store with invalid state.

    A gateway does not start with it, as it never guesses which release to serve.
    """
    return FailedPrecondition(f"{subject} cannot be read: repair or remove it.", reason="BAD_ROLLOUT_STATE")


def _write(path: Path, content: bytes) -> None:
    """Replace a file atomically.

    After a crash it is whole, either old or new.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # makes the rename durable
    finally:
        os.close(folder)
