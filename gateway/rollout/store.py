"""Where the state of a rollout lives: what every store does, and the one for a single gateway."""

import asyncio
import os
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chassis.errors import FailedPrecondition, Unavailable
from gateway.rollout.policy import Counts, State


class Document(BaseModel):
    """A state and its version, which rises by one with each that replaces another."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = Field(default=0, ge=0)
    state: State | None = None  # None before the first rollout


class Presence(BaseModel):
    """What one gateway tells the others about itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gateway: str
    version: int  # of the document it acts on
    in_use: tuple[str, ...]  # releases with requests under way there
    waiting: dict[str, int] = {}  # requests of the running step without a first token so far, by arm


class RolloutStore(Protocol):
    """Keeps one document and the counts of the step that runs.

    Every method raises Unavailable, reason 'ROLLOUT_STORE_UNREACHABLE', where the store cannot be reached, and
    FailedPrecondition, reason 'BAD_ROLLOUT_STATE', where it holds something that is no state.
    """

    async def read(self) -> Document:
        """Return what is kept."""
        ...

    async def swap(self, expected_version: int, document: Document) -> bool:
        """Keep `document` if what is kept has `expected_version`; say whether it did."""
        ...

    async def add(self, window: str, counts: Counts) -> Counts:
        """Add to the counts of a window; return the sums of all gateways."""
        ...

    async def report(self, presence: Presence) -> list[Presence]:
        """Tell of this gateway; return all that told of themselves within the last seconds, this one among them."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class _File(BaseModel):
    """The whole of a state file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    document: Document
    window: str = ""
    counts: dict[str, int] = {}


class FileStore:
    """The store of a single gateway: memory, and a file that is replaced as a whole, so that no crash halves it."""

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Args:
            path: need not exist yet; None keeps everything in memory, for as long as the process lives.

        Raises:
            FailedPrecondition: reason 'BAD_ROLLOUT_STATE', the file is not what a store wrote.
        """
        self._path = path
        self._file = _File(document=Document())
        self._writing = asyncio.Lock()
        if path is not None:
            try:
                self._file = _File.model_validate_json(path.read_bytes())
            except FileNotFoundError:
                pass  # it need not be there yet
            except (OSError, ValidationError) as error:
                raise bad_state(f"The rollout state file {path.name} cannot be read") from error

    async def read(self) -> Document:
        """Return what is kept."""
        return self._file.document

    async def swap(self, expected_version: int, document: Document) -> bool:
        """Keep `document` if what is kept has `expected_version`; say whether it did."""
        async with self._writing:
            if self._file.document.version != expected_version:
                return False
            await self._replace(self._file.model_copy(update={"document": document}))
            return True

    async def add(self, window: str, counts: Counts) -> Counts:
        """Add to the counts of a window, the newest one; return the sums."""
        async with self._writing:
            total = Counts(self._file.counts) if window == self._file.window else Counts()
            if counts or window != self._file.window:
                total.update(counts)
                await self._replace(self._file.model_copy(update={"window": window, "counts": dict(total)}))
            return total

    async def report(self, presence: Presence) -> list[Presence]:
        """Return this gateway, which is the only one."""
        return [presence]

    async def close(self) -> None:
        """Nothing is held open."""

    async def _replace(self, file: _File) -> None:
        if self._path is not None:
            try:
                await asyncio.to_thread(_write, self._path, file.model_dump_json().encode())
            except OSError as error:
                raise Unavailable(
                    f"The rollout state file {self._path.name} cannot be written ({error.strerror}).",
                    reason="ROLLOUT_STORE_UNREACHABLE",
                ) from error
        self._file = file  # only what is on disk counts


def bad_state(what: str) -> FailedPrecondition:
    """Return the error of a store whose content is no state; nobody guesses which release was meant."""
    return FailedPrecondition(f"{what}; repair or remove it.", reason="BAD_ROLLOUT_STATE")


def _write(path: Path, content: bytes) -> None:
    """Replace a file so that after a crash either the old or the new one is there, whole."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
