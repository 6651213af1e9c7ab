"""Dynamic batching: calls that arrive close together run as one.

Plain asyncio: it knows neither images nor gRPC. A batch starts as soon as it is full or its oldest item has waited
long enough; while one batch runs, the next gathers, so under load batches fill up by themselves.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import structlog

from chassis.back_pressure import time_to_clear_s
from chassis.errors import Internal, ResourceExhausted, TandemError, Unavailable

T = TypeVar("T")
R = TypeVar("R")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How large a batch may grow, how long it may wait for that, and how many items may wait in all."""

    max_batch_size: int = 16
    max_wait_s: float = 0.002  # seconds an item waits for company while the model is idle
    max_queue: int = 256  # items that wait; one more is refused at once


@dataclass(frozen=True, slots=True)
class Answer(Generic[R]):
    """One item's result and what it went through."""

    result: R
    queue_s: float
    run_s: float
    batch_size: int


@dataclass(slots=True, eq=False)
class _Job(Generic[T, R]):
    item: T
    answer: asyncio.Future[Answer[R]]
    since: float = field(default_factory=time.perf_counter)


class Batcher(Generic[T, R]):
    """Runs `run` on batches of what is submitted, in order of arrival; made and used on one event loop."""

    def __init__(
        self, run: Callable[[Sequence[T]], Sequence[R]], *, config: BatchConfig, executor: Executor, turn: asyncio.Lock
    ) -> None:
        """Start the batcher.

        Args:
            run: computes one result an item, in order; called in `executor`.
            config: sizes and times.
            executor: where `run` runs, beside the event loop.
            turn: held while a batch runs. Batchers that share it take turns, oldest first, and pick their items only
                when their turn has come, so waiting makes batches larger instead of the machine slower.
        """
        self._run = run
        self._config = config
        self._executor = executor
        self._turn = turn
        self._waiting: deque[_Job[T, R]] = deque()
        self._changed = asyncio.Event()
        self._last_run_s = 0.0
        self._closed = False
        self._loop_task = asyncio.create_task(self._loop())

    @property
    def num_waiting(self) -> int:
        """Items that wait for a batch."""
        return len(self._waiting)

    async def submit(self, item: T) -> Answer[R]:
        """Wait for the item's result.

        A caller that is cancelled gives its place back at once; an item whose batch has not started never runs.

        Raises:
            ResourceExhausted: the queue is full (reason QUEUE_FULL); says when to come again.
            Unavailable: the batcher is closed (reason MODEL_DRAINING).
            Internal: the batch failed (reason ENCODER_FAILED).
        """
        if self._closed:
            raise _draining()
        if len(self._waiting) >= self._config.max_queue:
            num_batches = -(-len(self._waiting) // self._config.max_batch_size)
            raise ResourceExhausted(
                "Too many images are waiting to be encoded.",
                reason="QUEUE_FULL",
                retry_after_s=time_to_clear_s(num_batches, self._last_run_s),
            )
        job = _Job[T, R](item, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._changed.set()
        try:
            return await job.answer
        except asyncio.CancelledError:
            with suppress(ValueError):  # its batch may be running
                self._waiting.remove(job)
            raise

    async def close(self) -> None:
        """Refuse new items and those that wait, and stop."""
        self._closed = True
        self._loop_task.cancel()
        await asyncio.wait([self._loop_task])
        while self._waiting:
            _fail(self._waiting.popleft(), _draining())

    async def _loop(self) -> None:
        while True:
            await self._gather()
            async with self._turn:
                count = min(len(self._waiting), self._config.max_batch_size)
                jobs = [self._waiting.popleft() for _ in range(count)]
                if jobs:  # every caller may have left meanwhile
                    await self._run_batch(jobs)

    async def _gather(self) -> None:
        """Return when the batch is full or its oldest item has waited long enough."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        start_at = self._waiting[0].since + self._config.max_wait_s
        while 0 < len(self._waiting) < self._config.max_batch_size:
            left_s = start_at - time.perf_counter()
            if left_s <= 0:
                return
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    async def _run_batch(self, jobs: list[_Job[T, R]]) -> None:
        started = time.perf_counter()
        items = [job.item for job in jobs]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
            pairs = list(zip(jobs, results, strict=True))
        except asyncio.CancelledError:
            for job in jobs:
                _fail(job, _draining())
            raise
        except Exception:
            # The batch's own callers hear of it, the next batch runs.
            log.exception("batch failed", batch_size=len(jobs))
            for job in jobs:
                _fail(job, Internal("The image could not be encoded; the log says why.", reason="ENCODER_FAILED"))
            return
        self._last_run_s = time.perf_counter() - started
        for job, result in pairs:
            if not job.answer.done():
                job.answer.set_result(Answer(result, started - job.since, self._last_run_s, len(jobs)))


def _draining() -> Unavailable:
    return Unavailable("The model is being unloaded.", reason="MODEL_DRAINING", retry_after_s=1)


def _fail(job: _Job[T, R], error: TandemError) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
