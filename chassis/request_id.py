"""Request ids: one id per request, in the logs of every process.

A server takes the id from the metadata of an RPC, or creates one. A context variable holds it during the RPC. Log lines
and outgoing channels read it from there.
"""

import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

REQUEST_ID_HEADER = "x-request-id"

# Ids go into logs and headers, so accept no character that could break a log line or a query.
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_current: ContextVar[str | None] = ContextVar("tandem_request_id", default=None)


def new_request_id() -> str:
    """Return a fresh id: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def request_id_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the valid id in `metadata`, or a fresh one."""
    for key, value in metadata or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and _VALID.fullmatch(value):
            return value
    return new_request_id()


def current_request_id() -> str | None:
    """Return the id of the current request, if any."""
    return _current.get()


@contextmanager
def bound_request_id(request_id: str) -> Iterator[None]:
    """Set the current request id until the block ends.

    It applies to this task and to the tasks it starts.
    """
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)
