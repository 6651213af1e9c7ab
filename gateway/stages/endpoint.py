"""One server of a stage, its models and recent failures."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog
from prometheus_client import Counter

from chassis.errors import (
    DeadlineExceeded,
    Internal,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    TandemError,
    Unavailable,
)
from gateway.stages.errors import model_absent, translate_errors, unreachable
from tandem.v1 import model_pb2

EJECTIONS = Counter(
    "tandem_gateway_ejections", "Models ejected at an endpoint after consecutive failures, by stage.", ["stage"]
)

_LIST_TIMEOUT_S = 1.0

# After this many consecutive timeouts, use an endpoint only as a last resort. It may be busy, or it may hang.
_MAX_TIMEOUTS = 3

# This many consecutive failures eject a model from an endpoint. Each further ejection lasts twice as long, up to the
# maximum. A success resets the time.
_FAILURES_TO_EJECT = 3
_MIN_EJECTION_S, _MAX_EJECTION_S = 1.0, 30.0

_log = structlog.get_logger()


class StageStub(Protocol):
    """The calls that the stubs of both stages share."""

    ListModels: Any


Stub = TypeVar("Stub", bound=StageStub)


class _CallHistory:
    """Recent results of one model's calls at one endpoint."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_failures = 0  # consecutive
        self._next_ejection_s = _MIN_EJECTION_S
        self._ejected_until_s = 0.0

    @property
    def is_ejected(self) -> bool:
        return self._clock() < self._ejected_until_s

    def record_success(self) -> None:
        self._num_failures, self._next_ejection_s = 0, _MIN_EJECTION_S

    def record_rejection(self) -> None:
        """Record that the model rightly rejected a bad request."""
        self._num_failures = 0

    def record_failure(self) -> float:
        """Record a failure and return the length of its ejection.

        Seconds, 0 if the failure ejects nothing.
        """
        self._num_failures += 1
        if self._num_failures < _FAILURES_TO_EJECT:
            return 0.0
        ejection_s = self._next_ejection_s
        self._ejected_until_s = self._clock() + ejection_s
        self._num_failures, self._next_ejection_s = 0, min(_MAX_EJECTION_S, 2 * ejection_s)
        return ejection_s


class Endpoint(Generic[Stub]):
    """One server of a stage.

    Attributes:
        address: host:port.
        is_responsive: whether it answers requests for its models. Fewer than three consecutive timeouts are tolerated.
        models: its models by tag, as last listed. Empty while it cannot be reached.
        num_in_flight: calls from this gateway that are in flight there.
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
        self.is_responsive = False
        self.models: dict[str, model_pb2.ModelInfo] = {}
        self.num_in_flight = 0
        self._num_of_others = 0  # calls of other gateways, as last reported
        self._stage = stage
        self._clock = clock
        self._num_timeouts = 0  # consecutive
        self._refuses = False  # whether the server refuses this gateway
        self._histories: dict[str, _CallHistory] = {}  # by tag, because a broken canary must not eject the stable model

    @property
    def load(self) -> int:
        """Calls of all gateways in flight there.

        Those of others are as old as the last list of models. A server that reports no load has only known calls.
        """
        return self.num_in_flight + self._num_of_others

    @property
    def timed_out(self) -> bool:
        """Whether the last `refresh` timed out: server busy or hanging."""
        return self._num_timeouts > 0

    def is_ejected(self, tag: str) -> bool:
        """Return whether calls of the model should avoid this endpoint."""
        return tag in self._histories and self._histories[tag].is_ejected

    async def refresh(self) -> None:
        """Ask the server which models it has."""
        num_before = self.num_in_flight
        try:
            with translate_errors(self._stage):
                response = await self.stub.ListModels(model_pb2.ListModelsRequest(), timeout=_LIST_TIMEOUT_S)
        except DeadlineExceeded:
            # Keep the models. When one of two replicas dies, the other is too busy to answer in time. The channel's
            # keepalive detects a server that hangs, and then the server cannot be reached.
            self._num_timeouts += 1
            self.is_responsive = self.is_responsive and self._num_timeouts < _MAX_TIMEOUTS
        except TandemError as error:
            self._note_refusal(error)
            self._mark_unreachable()
        else:
            self._num_timeouts, self._refuses = 0, False
            self.is_responsive, self.models = True, {info.tag: info for info in response.models}
            loads = [info.language.load for info in response.models]
            # A call that ended meanwhile, or has just begun, is no one else's.
            num_own = max(num_before, self.num_in_flight)
            self._num_of_others = max(0, sum(load.running + load.waiting for load in loads) - num_own)
            self._histories = {tag: history for tag, history in self._histories.items() if tag in self.models}

    @contextmanager
    def track_call(self, tag: str) -> Iterator[None]:
        """Count a call in flight and record its result.

        The block is the call.

        Raises:
            Unavailable: reason 'MODEL_ABSENT', the model was unloaded here.
        """
        history = self._histories.setdefault(tag, _CallHistory(self._clock))
        self.num_in_flight += 1
        try:
            yield
        except TandemError as error:
            if isinstance(error, NotFound) and error.reason == "UNKNOWN_TAG":
                # The server restarted, or the model was unloaded, since the last refresh. The tag is the gateway's
                # choice, so the client gets no NotFound.
                self.models.pop(tag, None)
                raise model_absent(self._stage, tag, self.models) from None
            self._record_error(tag, history, error)
            raise
        else:
            history.record_success()
        finally:
            self.num_in_flight -= 1

    def _record_error(self, tag: str, history: _CallHistory, error: TandemError) -> None:
        if isinstance(error, Unavailable) and error.reason == unreachable(self._stage).reason:
            self._mark_unreachable()
        elif isinstance(error, Unavailable | Internal):
            if ejection_s := history.record_failure():
                EJECTIONS.labels(self._stage).inc()
                _log.warning(
                    "model ejected from endpoint",
                    stage=self._stage,
                    tag=tag,
                    address=self.address,
                    seconds=ejection_s,
                    reason=error.reason,
                )
        elif not isinstance(error, ResourceExhausted):
            history.record_rejection()

    def _note_refusal(self, error: TandemError) -> None:
        """Log once that the server refuses this gateway's certificate.

        Otherwise it would look like a server that is down.
        """
        refuses = isinstance(error, PermissionDenied)
        if refuses and not self._refuses:
            _log.error(
                "stage refuses this gateway",
                stage=self._stage,
                address=self.address,
                reason=error.reason,
                error=error.message,
            )
        self._refuses = refuses

    def _mark_unreachable(self) -> None:
        """Treat the server as gone until a refresh succeeds."""
        self.is_responsive, self.models, self._num_timeouts, self._num_of_others = False, {}, 0, 0
