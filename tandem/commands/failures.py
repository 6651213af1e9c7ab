"""Report errors as one sentence, without a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from chassis.visible_text import visible
from tandem.errors import TandemError


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with one sentence if the block fails.

    Handles the errors that a user can cause. Any other error is a bug and keeps its traceback.
    """
    try:
        yield
    except TandemError as error:
        _fail(sentence(error))
    except UnicodeEncodeError as error:  # the shell passed bytes of another encoding
        _fail(f"Not UTF-8, and cannot be sent: {error.object!r}.")
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}." if error.filename else f"{error}.")


def sentence(error: TandemError) -> str:
    """Return an error as one sentence, with its request id."""
    message = error.local_message[:1].upper() + error.local_message[1:].removesuffix(".")
    if error.reason == "UNREACHABLE":
        return f"{message}; start one with `tandem up`."
    return f"{message} (request id {error.request_id})." if error.request_id else f"{message}."


def _fail(text: str) -> None:
    sys.stderr.write(f"{visible(text)}\n")
    raise SystemExit(1)
