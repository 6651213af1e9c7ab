"""Let costly constraints compute only between forward passes.

Even at the lowest priority, a process takes a processor of a busy service for milliseconds. A forward pass waits for
the slowest of its threads. So costly workers are stopped while one is computed. Between two passes, when the service
leaves some processors idle, one of them goes on.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from language_service.sampling.grammar_process import GrammarProcess

_RECENT_S = 0.05  # after a forward pass, the next one is likely


class CostlyWorkers:
    """Stops and continues workers.

    One object for all engines of this process, because they compete for the same processors.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_computing = 0  # forward passes
        self._computed_s = -float("inf")  # when the last one ended
        self._workers: set[GrammarProcess] = set()
        self._stopped: dict[GrammarProcess, None] = {}  # in the order in which they go on
        self._running: GrammarProcess | None = None  # went on last

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop all costly workers while the block computes."""
        with self._lock:
            self._num_computing += 1
            for worker in self._workers:
                self._stop_if_costly(worker)
        try:
            yield
        finally:
            with self._lock:
                self._num_computing -= 1
                self._computed_s = time.monotonic()
                self._go_on()

    def update(self, worker: GrammarProcess) -> None:
        """Note a change of a worker.

        It is new, has started, was stopped, has sent a reply, or has ended.
        """
        with self._lock:
            if worker.has_ended:
                self._workers.discard(worker)
                self._stopped.pop(worker, None)
            else:
                self._workers.add(worker)
                is_busy = time.monotonic() < self._computed_s + _RECENT_S
                if self._num_computing or (is_busy and worker.was_stopped):
                    self._stop_if_costly(worker)
                elif worker not in self._stopped:  # a timer has stopped it, but no engine is busy
                    worker.go_on()
            self._go_on()

    def _stop_if_costly(self, worker: GrammarProcess) -> None:
        if worker.is_costly:
            if worker is self._running:
                self._running = None
            worker.stop()
            self._stopped.setdefault(worker)
        elif worker.was_stopped:
            self._stopped.pop(worker, None)
            worker.go_on()

    def _go_on(self) -> None:
        """Let the next worker go on, a new one first."""
        is_running = self._running is not None and self._running.is_costly and not self._running.has_ended
        if self._num_computing or is_running or not self._stopped:
            return
        self._running = next((worker for worker in self._stopped if not worker.begun.done()), next(iter(self._stopped)))
        del self._stopped[self._running]
        self._running.go_on()


costly_workers = CostlyWorkers()
