"""Read files again after they change."""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from chassis.errors import TandemError

_CHECK_S = 1.0  # shortest time between two looks at the files

_log = logging.getLogger(__name__)  # also part of the client, which has no structlog

T = TypeVar("T")


class ChangingFiles(Generic[T]):
    """The current content of some files. Thread-safe.

    While files are replaced one after the other, they may not fit together. The last value stays until they do.
    """

    def __init__(self, paths: Iterable[Path | None], read: Callable[[], T]) -> None:
        """Read the files.

        Args:
            paths: the files. None stands for a file that is not used.
            read: reads them, or raises a TandemError.

        Raises:
            TandemError: as `read`.
        """
        self._paths = [path for path in paths if path is not None]
        self._read = read
        self._lock = threading.Lock()
        self._num_changes = 0
        self._look_at_s = time.monotonic() + _CHECK_S
        self._state = self._problem = self._state_now()
        self._value = read()

    def current(self) -> T:
        """Return the newest value that could be read."""
        self._look()
        return self._value

    def num_changes(self) -> int:
        """Return how often the value has changed."""
        self._look()
        return self._num_changes

    def _look(self) -> None:
        """Read the files again if they have changed."""
        with self._lock:
            now_s = time.monotonic()
            if now_s >= self._look_at_s:
                self._look_at_s = now_s + _CHECK_S
                self._read_changes()

    def _read_changes(self) -> None:
        state = self._state_now()  # before the content, so that a later change is seen next time
        if state == self._state:
            return
        try:
            self._value = self._read()
        except (TandemError, OSError) as error:
            if state != self._problem:
                _log.error("changed files cannot be used, so the last ones stay in use: %s", _sentence(error))
                self._problem = state
            return
        self._state = state
        self._num_changes += 1
        _log.info("changed files are in use: %s", ", ".join(path.name for path in self._paths))

    def _state_now(self) -> list[tuple[int, int, int] | None]:
        return [identity_of(path) for path in self._paths]


def identity_of(path: Path) -> tuple[int, int, int] | None:
    """Return values that change with a file. Follows links."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _sentence(error: TandemError | OSError) -> str:
    return error.local_message if isinstance(error, TandemError) else str(error.strerror)
