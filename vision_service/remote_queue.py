"""Call a backend in another process, one call for each image."""

import asyncio
import time

import numpy as np
import structlog
from numpy.typing import NDArray

from chassis.back_pressure import time_to_clear_s
from chassis.cancellation import is_asked_to_stop
from chassis.errors import Internal, ResourceExhausted, TandemError
from processing import Pixels
from vision_service.backends import RemoteBackend
from vision_service.batcher import BatchResult, draining

_log = structlog.get_logger(__name__)


class RemoteQueue:
    """Limits the calls in flight.

    It takes the place of `Batcher` for a backend that forms batches itself. A cancelled caller cancels its call, so
    deadlines and cancellations reach the other process. For one event loop.
    """

    def __init__(self, backend: RemoteBackend, *, max_in_flight: int) -> None:
        """Start without calls.

        Args:
            backend: makes the calls. The queue closes it.
            max_in_flight: a further call is rejected at once.
        """
        self._backend = backend
        self._max_in_flight = max_in_flight
        self._calls: set[asyncio.Task[list[NDArray[np.uint16]]]] = set()
        self._last_run_s = 0.0
        self._closed = asyncio.Event()

    @property
    def num_waiting(self) -> int:
        """Number of calls in flight."""
        return len(self._calls)

    async def submit(self, item: Pixels) -> BatchResult[NDArray[np.uint16]]:
        """Return the visual tokens of one image.

        Raises:
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
            Unavailable: reason 'MODEL_DRAINING', the queue is closed.
            Internal: reason 'ENCODER_FAILED', the backend failed unexpectedly.
            TandemError: an error of the backend.
        """
        if self._closed.is_set():
            raise draining()
        if len(self._calls) >= self._max_in_flight:
            raise ResourceExhausted(
                "The queue for encoding is full, retry later.",
                reason="QUEUE_FULL",
                retry_after_s=time_to_clear_s(1, self._last_run_s),
            )
        started = time.perf_counter()
        call = asyncio.create_task(self._backend.encode_async([item]))
        self._calls.add(call)
        try:
            [tokens] = await call  # a cancelled caller cancels it
        except TandemError:
            raise
        except asyncio.CancelledError:
            if self._closed.is_set() and not is_asked_to_stop():
                raise draining() from None
            raise
        except Exception as error:
            _log.exception("remote backend failed")
            raise Internal(
                "The image could not be encoded, see the vision service's log.", reason="ENCODER_FAILED"
            ) from error
        finally:
            self._calls.discard(call)
        self._last_run_s = time.perf_counter() - started
        return BatchResult(tokens, queue_s=0.0, run_s=self._last_run_s, batch_size=1)

    async def close(self) -> None:
        """Reject new items, fail the others, close the backend."""
        self._closed.set()
        for call in self._calls:
            call.cancel()
        await self._backend.close()
