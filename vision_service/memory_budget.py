"""Bound the memory that threads or processes use together."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Budget(Protocol):
    """Bytes to reserve before they are used."""

    @property
    def num_bytes(self) -> int:
        """All of them."""
        ...

    def reserve(self, num_bytes: int) -> AbstractContextManager[None]:
        """Wait for free bytes, and keep them for the block."""
        ...


class MemoryBudget:
    """Bytes that threads reserve, first come, first served."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self._free = num_bytes
        self._turn = threading.Lock()  # held by the thread that waits longest, so that none is overtaken for ever
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Wait for free bytes and keep them.

        Args:
            num_bytes: at most those of the budget.
        """
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._free >= num_bytes)
            self._free -= num_bytes
        try:
            yield
        finally:
            with self._changed:
                self._free += num_bytes
                self._changed.notify()
