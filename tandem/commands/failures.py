"""How a command tells of an error: one plain sentence on stderr and exit code 1, never a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tandem.errors import TandemError


@contextmanager
def told_plainly() -> Iterator[None]:
    """End the process with a sentence where the block raises an error that a user can meet."""
    try:
        yield
    except TandemError as error:
        _fail(sentence(error))
    except UnicodeEncodeError as error:  # the shell handed over bytes of another encoding
        _fail(f"Not UTF-8, and cannot be sent: {error.object!r}.")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}." if error.filename else f"{error}.")


def sentence(error: TandemError) -> str:
    """Return what to tell the user, with the folder it is about or the request id to look for in the logs."""
    message = error.local_message[:1].upper() + error.local_message[1:].removesuffix(".")
    if error.reason == "UNREACHABLE":
        return f"{message}; start one with `tandem up`."
    return f"{message} (request id {error.request_id})." if error.request_id else f"{message}."


def _fail(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    raise SystemExit(1)
