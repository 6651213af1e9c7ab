"""The JSON that gateways of several versions store and read.

A newer gateway may store more than this one knows. Then this one leaves out the unknown parts when it reads, and stores
them again when it writes. So gateways can be updated one by one, in both directions.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, TypeVar, get_args

from prometheus_client import Counter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from gateway.rollout.policy import Arm, Probing, State

BAD_ENTRIES = Counter(
    "tandem_rollout_bad_entries",
    "Parts of the rollout store that this gateway left out, because it does not know them or they are damaged.",
    ["kind"],
)
for _kind in ("heartbeat", "state", "change", "count"):
    BAD_ENTRIES.labels(_kind)  # an alert needs the 0 before the 1

_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_MAX_LEFT_OUT = 200  # parts of one document

Path = tuple[int | str, ...]
Unknown = tuple[tuple[Path, Any], ...]  # unknown parts of a document, by their path
T = TypeVar("T")


class Document(BaseModel):
    """A state with its version.

    Every new document has the next version.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: int = Field(default=0, ge=0)
    state: State | None = None  # None before the first rollout
    # In force at this gateway, before the store of all gateways has it. Only a local copy can be so.
    is_unconfirmed: bool = Field(default=False, exclude_if=lambda value: not value)
    unknown: Unknown = Field(default=(), exclude=True)  # parts of the state that a newer gateway stored

    def followed_by(self, state: State, *, is_unconfirmed: bool = False) -> "Document":
        """Return the next document, with the unknown parts that stay."""
        stays = self.state is not None and self.state.id == state.id
        return Document(
            version=self.version + 1,
            state=state,
            is_unconfirmed=is_unconfirmed,
            unknown=self.unknown if stays else (),
        )


def _known_arms(waiting: Any) -> Any:
    is_dict = isinstance(waiting, dict)
    return {arm: count for arm, count in waiting.items() if arm in get_args(Arm)} if is_dict else waiting


class Heartbeat(BaseModel):
    """One gateway's report to the others."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    gateway: str
    version: int  # of the document it acts on
    in_use: tuple[str, ...]  # releases with requests in flight
    # Requests of the running step without a first token, by arm.
    waiting: Annotated[dict[Arm, int], BeforeValidator(_known_arms)] = {}
    probing: Probing | None = Field(default=None, exclude_if=lambda value: value is None)  # so far, if it runs them


_STATE: TypeAdapter[State] = TypeAdapter(State)
_HEARTBEAT = TypeAdapter(Heartbeat)


def read_document(version: int, state: Any, *, is_unconfirmed: bool = False) -> Document:
    """Return a stored document.

    Args:
        version: of the document.
        state: parsed JSON. Its unknown parts are removed from it.
        is_unconfirmed: see `Document`.

    Raises:
        ValueError: the state is not valid.
    """
    read, left_out = _read(_STATE, state, _can_leave_out_of_state)
    for path, _ in left_out:
        BAD_ENTRIES.labels("change" if path[0] == "changes" else "state").inc()
    # The history is for reading only, and its places change.
    unknown = tuple(sorted(((path, value) for path, value in left_out if path[0] != "changes"), key=str))
    return Document(version=version, state=read, is_unconfirmed=is_unconfirmed, unknown=unknown)


def state_value(document: Document) -> Any:
    """Return a document's state for JSON, with its unknown parts."""
    state = _STATE.dump_python(document.state, mode="json") if document.state is not None else None
    for path, value in document.unknown:
        parent: Any = state
        with suppress(LookupError, TypeError):  # the part it belongs to is gone
            for name in path[:-1]:
                parent = parent[name]
            parent.setdefault(path[-1], value)
    return state


def to_json(value: Any) -> bytes:
    """Return a value as compact JSON."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def read_heartbeat(gateway: str, text: str | bytes) -> Heartbeat:
    """Return a stored heartbeat.

    A gateway whose heartbeat cannot be read may still use any release. So it counts as one that lags behind.
    """
    try:
        heartbeat, left_out = _read(_HEARTBEAT, json.loads(text), _can_leave_out_of_heartbeat)
    except ValueError:
        BAD_ENTRIES.labels("heartbeat").inc()
        return Heartbeat(gateway=gateway, version=0, in_use=())
    BAD_ENTRIES.labels("heartbeat").inc(len(left_out))
    return heartbeat


def read_counts(stored: Mapping[str, Any]) -> dict[str, int]:
    """Return the stored counts that are integers, by path."""
    counts: dict[str, int] = {}
    for path, count in stored.items():
        try:
            counts[path] = int(str(count))
        except ValueError:
            BAD_ENTRIES.labels("count").inc()
    return counts


def _can_leave_out_of_state(path: Path) -> Path | None:
    """Return the part of the history, which only people read."""
    if path[0] != "changes" or len(path) < 2:
        return None
    is_finding = len(path) > 3 and path[2] == "findings"
    return path[:4] if is_finding else path[:2]


def _can_leave_out_of_heartbeat(path: Path) -> Path | None:
    return ("probing",) if path[0] == "probing" else None


def _read(
    adapter: TypeAdapter[T], value: Any, can_leave_out: Callable[[Path], Path | None]
) -> tuple[T, list[tuple[Path, Any]]]:
    """Validate a value, without its unknown parts.

    Args:
        adapter: of the type.
        value: parsed JSON. The left out parts are removed from it.
        can_leave_out: returns the part to leave out for an error at a path, or None if it is needed.

    Raises:
        ValueError: the rest is not valid.
    """
    left_out: list[tuple[Path, Any]] = []
    while True:
        try:
            return adapter.validate_python(value), left_out
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            path: Path | None = first["loc"]
            assert path is not None
            if first["type"] not in _UNKNOWN:
                path = can_leave_out(path) if path else None
            if path is None or len(left_out) == _MAX_LEFT_OUT:
                raise
            left_out.append((path, _removed(value, path)))


def _removed(value: Any, path: Path) -> Any:
    """Remove the part at `path` and return it."""
    for name in path[:-1]:
        value = value[name]
    return value.pop(path[-1])
