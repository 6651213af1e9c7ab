"""Dynamic batching: run calls that arrive close together as one.

Plain asyncio, without images or gRPC. A batch starts once it is full, or once its oldest item has waited long enough.
While one batch runs, the next one fills. So batches grow with the load.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import structlog

from chassis.back_pressure import time_to_clear_s
from chassis.errors import Internal, ResourceExhausted, TandemError, Unavailable
from chassis.vital import vital

T = TypeVar("T")
R = TypeVar("R")

MODEL_DRAINING = "MODEL_DRAINING"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Limits on batch size, waiting time and queue length."""

    max_batch_size: int = 16
    max_batch_size_sum: int = 2**22  # of the items' own sizes. A larger item runs alone
    max_wait_s: float = 0.002  # seconds an item waits for others while the model is idle
    max_queue: int = 256  # waiting items. A further one is rejected at once


@dataclass(frozen=True, slots=True)
class BatchResult(Generic[R]):
    """The result of one item, with its timings."""

    result: R
    queue_s: float  # from submission to the start of its batch
    run_s: float  # of its batch
    batch_size: int


@dataclass(slots=True, eq=False)
class _Job(Generic[T, R]):
    item: T
    future: asyncio.Future[BatchResult[R]]
    submitted_s: float = field(default_factory=time.perf_counter)


class Batcher(Generic[T, R]):
    """Runs a function on batches of items in submission order.

    For one event loop.
    """

    def __init__(
        self,
        run: Callable[[Sequence[T]], Sequence[R]],
        *,
        config: BatchConfig,
        executor: Executor,
        lock: asyncio.Lock,
        size_of: Callable[[T], int] = lambda _item: 1,
    ) -> None:
        """Start the batcher.

        Args:
            run: computes one result per item, in order.
            config: limits of batches and queue.
            executor: runs `run`, so that the event loop stays free.
            lock: acquired for each batch. Batchers that share it run one after the other, in order of arrival. Each
                selects its items after it has the lock, so that waiting makes its batch larger.
            size_of: returns the size of an item, of which a batch takes a limited sum.
        """
        self._run = run
        self._config = config
        self._executor = executor
        self._lock = lock
        self._size_of = size_of
        self._waiting: deque[_Job[T, R]] = deque()
        self._changed = asyncio.Event()  # an item was submitted
        self._last_run_s = 0.0
        self._closed = False
        self._loop_task = asyncio.create_task(self._live())

    @property
    def num_waiting(self) -> int:
        """Number of items that wait for a batch."""
        return len(self._waiting)

    async def submit(self, item: T) -> BatchResult[R]:
        """Wait for the result of `item`.

        A cancelled call frees its queue slot at once. Its item runs only if the batch has already started.

        Raises:
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
            Unavailable: reason 'MODEL_DRAINING', the batcher is closed.
            Internal: reason 'ENCODER_FAILED', the batch failed.
        """
        if self._closed:
            raise draining()
        if len(self._waiting) >= self._config.max_queue:
            num_batches = -(-len(self._waiting) // self._config.max_batch_size)
            raise ResourceExhausted(
                "The queue for encoding is full, retry later.",
                reason="QUEUE_FULL",
                retry_after_s=time_to_clear_s(num_batches, self._last_run_s),
            )
        job = _Job[T, R](item, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._changed.set()
        try:
            return await job.future
        except asyncio.CancelledError:
            with suppress(ValueError):  # its batch may already run
                self._waiting.remove(job)
            raise

    async def close(self) -> None:
        """Reject waiting and new items, and stop."""
        self._closed = True
        self._loop_task.cancel()
        await asyncio.wait([self._loop_task])
        while self._waiting:
            _fail(self._waiting.popleft(), draining())

    async def _live(self) -> None:
        """Run batches until closed.

        The death of this task ends the process.
        """
        try:
            with vital("batcher"):
                await self._loop()
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._closed = True
            while self._waiting:
                _fail(self._waiting.popleft(), draining())

    async def _loop(self) -> None:
        while True:
            await self._wait_for_batch()
            async with self._lock:
                jobs = [self._waiting.popleft() for _ in range(self._next_batch_size())]
                if jobs:  # all callers may have been cancelled meanwhile
                    await self._run_batch(jobs)

    async def _wait_for_batch(self) -> None:
        """Wait until a batch is full or due."""
        while not self._waiting:
            self._changed.clear()
            await self._changed.wait()
        start_at = self._waiting[0].submitted_s + self._config.max_wait_s
        while 0 < len(self._waiting) == self._next_batch_size() < self._config.max_batch_size:
            left_s = start_at - time.perf_counter()
            if left_s <= 0:
                return
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()

    def _next_batch_size(self) -> int:
        """Return the number of items in the next batch."""
        total = 0
        for count, job in enumerate(islice(self._waiting, self._config.max_batch_size)):
            total += self._size_of(job.item)
            if count and total > self._config.max_batch_size_sum:
                return count
        return min(len(self._waiting), self._config.max_batch_size)

    async def _run_batch(self, jobs: list[_Job[T, R]]) -> None:
        started = time.perf_counter()
        items = [job.item for job in jobs]
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._executor, self._run, items)
            pairs = list(zip(jobs, results, strict=True))
        except asyncio.CancelledError:
            for job in jobs:
                _fail(job, draining())
            raise
        except BaseException as error:
            # Only the callers of this batch get the error. The next batch runs, unless this was no ordinary error.
            _log.exception("batch failed", batch_size=len(jobs))
            for job in jobs:
                _fail(
                    job,
                    Internal(
                        "The image could not be encoded, see the vision service's log.",
                        reason="ENCODER_FAILED",
                    ),
                )
            if not isinstance(error, Exception):
                raise
            return
        self._last_run_s = time.perf_counter() - started
        for job, result in pairs:
            if not job.future.done():
                job.future.set_result(BatchResult(result, started - job.submitted_s, self._last_run_s, len(jobs)))


def draining() -> Unavailable:
    """Return the error while a model is being unloaded."""
    return Unavailable("The model is being unloaded.", reason=MODEL_DRAINING, retry_after_s=1)


def _fail(job: _Job[T, R], error: TandemError) -> None:
    if not job.future.done():
        job.future.set_exception(error)
