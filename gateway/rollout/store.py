"""The interface of rollout stores, and a local store."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, NonNegativeInt

from chassis.atomic_file import remove_partials, write_atomically
from chassis.errors import FailedPrecondition, Unavailable
from gateway.rollout.policy import Counts
from gateway.rollout.stored_format import Document, Heartbeat, read_counts, read_document, state_value, to_json

# A step's time goes on for at most so long between two counts, so a stopped gateway or a changed clock ends no step.
MAX_GAP_S = 10.0
_ELAPSED = "elapsed_ms"  # beside the counts of a file, which have other paths


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTotals:
    """The running step, over all gateways."""

    counts: Counts
    elapsed_s: float  # time in which a gateway watched the step, by the clock of the store


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """What all gateways together know of a routing key's use."""

    is_first: bool  # no gateway has seen the key before in this rollout
    has_other_callers: bool  # somebody else has used a key, at any gateway


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

    async def add(self, window: str, counts: Counts) -> StepTotals:
        """Add counts of a step. Return all gateways' sums."""
        ...

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        """Report this gateway as alive. Return all living gateways."""
        ...

    async def take_lease(self, task: str, gateway: str, seconds: float, *, renew: bool = True) -> bool:
        """Take or renew a lease. Return whether it succeeded."""
        ...

    async def use_key(self, rollout_id: str, routing_key: str, caller: str) -> KeyUse:
        """Remember a key's use. Return what was known before it."""
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


class _StoredDocument(BaseModel):
    version: NonNegativeInt = 0
    state: Any = None
    is_unconfirmed: bool = False


class _StoredFile(BaseModel):
    """A state file, before its state is read."""

    document: _StoredDocument
    window: str = ""
    counts: dict[str, Any] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    """The content of a state file."""

    document: Document = field(default_factory=Document)
    window: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)  # by path, see `Counts`

    @classmethod
    def of(cls, content: bytes) -> "_File":
        """Read the content.

        Raises:
            ValueError: it is not valid.
        """
        stored = _StoredFile.model_validate_json(content)
        version, state = stored.document.version, stored.document.state
        document = (
            Document(version=version)
            if state is None
            else read_document(version, state, is_unconfirmed=stored.document.is_unconfirmed)
        )
        return cls(document=document, window=stored.window, counts=read_counts(stored.counts))

    def to_json(self) -> bytes:
        """Return the content."""
        document = {"version": self.document.version, "state": state_value(self.document)}
        if self.document.is_unconfirmed:
            document["is_unconfirmed"] = True
        return to_json({"document": document, "window": self.window, "counts": self.counts})


class FileStore:
    """The store of a single gateway, in memory or file.

    The file is always replaced as a whole, so a crash never leaves half a state.
    """

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file.

        Args:
            path: of the file, which need not exist yet. None keeps everything in memory.
            clock: monotonic seconds.

        Raises:
            FailedPrecondition: reason 'BAD_ROLLOUT_STATE', the file is not valid.
        """
        self._path = path
        self._file = _File()
        self._writing = asyncio.Lock()
        self._clock = clock
        self._timed_at_s: float | None = None  # None before the first counts
        self._elapsed_s = 0.0  # of the running step
        if path is not None:
            try:
                self._file = _File.of(path.read_bytes())
            except FileNotFoundError:
                pass  # the first write creates it
            except (OSError, ValueError) as error:
                raise bad_state(f"The rollout state file {path.name}") from error
            remove_partials(path)
            self._elapsed_s = self._file.counts.get(_ELAPSED, 0) / 1000

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

    async def add(self, window: str, counts: Counts) -> StepTotals:
        """Add counts of a step. Return the sums.

        Only the counts of one step are kept.
        """
        async with self._writing:
            is_new = window != self._file.window
            elapsed_s = self._time_step(is_new=is_new)
            total = Counter({} if is_new else self._file.counts)
            added = counts.to_paths()
            if added or is_new:
                total.update(added)
                written = {**total, _ELAPSED: round(elapsed_s * 1000)} if elapsed_s else dict(total)
                await self._replace(_File(document=self._file.document, window=window, counts=written))
            return StepTotals(counts=Counts.from_paths(total), elapsed_s=elapsed_s)

    def _time_step(self, *, is_new: bool) -> float:
        """Return the time of the running step, which goes on."""
        now_s = self._clock()
        since_s = now_s - self._timed_at_s if self._timed_at_s is not None else 0.0
        self._timed_at_s = now_s
        self._elapsed_s = 0.0 if is_new else self._elapsed_s + min(since_s, MAX_GAP_S)
        return self._elapsed_s

    async def heartbeat(self, own: Heartbeat) -> list[Heartbeat]:
        """Return the heartbeat of this gateway, the only one."""
        return [own]

    async def take_lease(self, task: str, gateway: str, seconds: float, *, renew: bool = True) -> bool:
        """Return True, as this gateway is the only one."""
        return True

    async def use_key(self, rollout_id: str, routing_key: str, caller: str) -> KeyUse:
        """Return that no other gateway has seen the key."""
        return KeyUse(is_first=True, has_other_callers=False)

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
                await asyncio.to_thread(write_atomically, self._path, file.to_json(), private=True, durable=True)
            except OSError as error:
                raise Unavailable(
                    f"The rollout state file cannot be written: {error.strerror}.",
                    reason="ROLLOUT_STORE_UNREACHABLE",
                    where=self._path,
                ) from error
        self._file = file  # only after the write, so memory is never ahead of the disk


class NoStore(FileStore):
    """The store of workers that share none.

    So none of them begins a rollout alone.
    """

    async def compare_and_set(self, expected_version: int, document: Document) -> bool:
        """Refuse every change.

        Raises:
            FailedPrecondition: reason 'NO_ROLLOUT_STORE'.
        """
        raise FailedPrecondition(
            "The workers of this gateway share no rollout: start it with --rollout-redis, or with --workers 1.",
            reason="NO_ROLLOUT_STORE",
        )


def bad_state(subject: str) -> FailedPrecondition:
    """Return the error of a store with invalid state.

    A gateway does not start with it, as it never guesses which release to serve.
    """
    return FailedPrecondition(f"{subject} cannot be read: repair or remove it.", reason="BAD_ROLLOUT_STATE")
