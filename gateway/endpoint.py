"""One endpoint of a stage: what it holds, how busy it is, and whether it may be trusted with another request."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog

from chassis.errors import DeadlineExceeded, Internal, ResourceExhausted, TandemError, Unavailable
from gateway import metrics
from gateway.stage_errors import errors_of, unreachable
from tandem.v1 import model_pb2

_ASK_TIMEOUT_S = 1.0
# A server that is late is busy; one that is late so often in a row is gone.
_LATE_TO_BE_GONE = 3
# So many failures in a row leave it out, first for the shorter, then for twice as long each time, up to the longer.
_FAILURES_TO_EJECT = 3
_SHORTEST_EJECTION_S, _LONGEST_EJECTION_S = 1.0, 30.0

_log = structlog.get_logger()


class StageStub(Protocol):
    """What the stubs of both stages have in common."""

    ListModels: Any


Stub = TypeVar("Stub", bound=StageStub)


class Endpoint(Generic[Stub]):
    """One server of a stage.

    Attributes:
        address: host:port.
        answers: whether it told what it holds when it was asked last.
        models: what it holds, by tag; empty while it does not answer.
        num_running: calls of this gateway that run there.
    """

    def __init__(
        self,
        stage: str,
        address: str,
        channel: grpc.aio.Channel,
        stub: Stub,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address = address
        self.channel = channel
        self.stub = stub
        self.answers = False
        self.models: dict[str, model_pb2.ModelInfo] = {}
        self.num_running = 0
        self._stage = stage
        self._clock = clock
        self._num_late = 0  # answers in a row that did not come in time
        self._num_failures = 0  # in a row
        self._ejection_s = _SHORTEST_EJECTION_S  # how long the next one lasts
        self._ejected_until_s = 0.0

    @property
    def is_ejected(self) -> bool:
        """Whether it failed so often that others are asked while there are others."""
        return self._clock() < self._ejected_until_s

    async def ask(self) -> None:
        """Ask which models it holds."""
        try:
            with errors_of(self._stage):
                answer = await self.stub.ListModels(model_pb2.ListModelsRequest(), timeout=_ASK_TIMEOUT_S)
        except DeadlineExceeded:
            self._num_late += 1
            if self._num_late >= _LATE_TO_BE_GONE:
                self.answers, self.models = False, {}
        except TandemError:
            self.answers, self.models = False, {}
        else:
            self._num_late = 0
            self.answers, self.models = True, {info.tag: info for info in answer.models}

    @contextmanager
    def calling(self) -> Iterator[None]:
        """Count a call for the length of the block, and note how it ended."""
        self.num_running += 1
        try:
            yield
        except TandemError as error:
            self._note_error(error)
            raise
        else:
            self._num_failures, self._ejection_s = 0, _SHORTEST_EJECTION_S
        finally:
            self.num_running -= 1

    def _note_error(self, error: TandemError) -> None:
        if isinstance(error, Unavailable) and error.reason == unreachable(self._stage).reason:
            self.answers, self.models = False, {}  # until it answers when it is asked again
        elif isinstance(error, Unavailable | Internal):
            self._num_failures += 1
        elif not isinstance(error, ResourceExhausted):
            self._num_failures = 0  # it refused what was wrong with the request, as it should
        if self._num_failures >= _FAILURES_TO_EJECT:
            self._eject(error)

    def _eject(self, error: TandemError) -> None:
        self._ejected_until_s = self._clock() + self._ejection_s
        metrics.EJECTIONS.labels(self._stage).inc()
        _log.warning(
            "endpoint left out", stage=self._stage, address=self.address, seconds=self._ejection_s, reason=error.reason
        )
        self._num_failures = 0
        self._ejection_s = min(_LONGEST_EJECTION_S, 2 * self._ejection_s)
