"""The request id: one name for a request in the logs of every process it passes.

It comes in the metadata of a call, or is made where it is absent or malformed. It lives in a context variable while the
call is handled, so log lines carry it and channels forward it without being told.
"""

import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

REQUEST_ID_HEADER = "x-request-id"

# Ids go into logs and headers of others, so nothing is taken over that could break a line or a query.
_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
_current: ContextVar[str | None] = ContextVar("tandem_request_id", default=None)


def new_request_id() -> str:
    """Return a fresh id: 32 hexadecimal digits."""
    return secrets.token_hex(16)


def request_id_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> str:
    """Return the id a caller sent, or a fresh one where it sent none or one that is malformed."""
    for key, value in metadata or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and _VALID.fullmatch(value):
            return value
    return new_request_id()


def current_request_id() -> str | None:
    """Return the id of the request that is being handled here, or None outside of one."""
    return _current.get()


@contextmanager
def bound_request_id(request_id: str) -> Iterator[None]:
    """Make `request_id` the current one in this task, and in the tasks it starts, for the length of the block."""
    token = _current.set(request_id)
    try:
        yield
    finally:
        _current.reset(token)
