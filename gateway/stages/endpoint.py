"""One endpoint of a stage: what it holds, how busy it is, and whether it may be trusted with another request."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

import grpc
import structlog
from prometheus_client import Counter

from chassis.errors import DeadlineExceeded, Internal, NotFound, ResourceExhausted, TandemError, Unavailable
from gateway.stages.errors import errors_of, unreachable
from tandem.v1 import model_pb2

EJECTIONS = Counter(
    "tandem_gateway_ejections", "Models left out at an endpoint for failures in a row, by stage.", ["stage"]
)


_ASK_TIMEOUT_S = 1.0
# Late so often in a row, a server is asked only where there is no other: it may be busy, and it may hang.
_LATE_TO_BE_LAST = 3
# So many failures in a row leave it out, first for the shorter, then for twice as long each time, up to the longer.
_FAILURES_TO_EJECT = 3
_SHORTEST_EJECTION_S, _LONGEST_EJECTION_S = 1.0, 30.0

_log = structlog.get_logger()


def absent(stage: str, tag: str) -> Unavailable:
    """Return the error of a stage that answers, and holds other models."""
    return Unavailable(f"The {stage} service does not hold {tag}.", reason="MODEL_ABSENT", retry_after_s=1)


class StageStub(Protocol):
    """What the stubs of both stages have in common."""

    ListModels: Any


Stub = TypeVar("Stub", bound=StageStub)


class _Conduct:
    """How calls of one model at one endpoint went lately."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._num_failures = 0  # in a row
        self._ejection_s = _SHORTEST_EJECTION_S  # how long the next one lasts
        self._ejected_until_s = 0.0

    @property
    def is_ejected(self) -> bool:
        return self._clock() < self._ejected_until_s

    def note_success(self) -> None:
        self._num_failures, self._ejection_s = 0, _SHORTEST_EJECTION_S

    def note_refusal(self) -> None:
        """Note that it refused what was wrong with a request, as it should."""
        self._num_failures = 0

    def note_failure(self) -> float:
        """Note a failure; return for how many seconds it is left out from now on, 0 where it was not one too many."""
        self._num_failures += 1
        if self._num_failures < _FAILURES_TO_EJECT:
            return 0.0
        ejection_s = self._ejection_s
        self._ejected_until_s = self._clock() + ejection_s
        self._num_failures, self._ejection_s = 0, min(_LONGEST_EJECTION_S, 2 * ejection_s)
        return ejection_s


class Endpoint(Generic[Stub]):
    """One server of a stage.

    Attributes:
        address: host:port.
        answers: whether it tells what it holds when it is asked, late at most twice in a row.
        models: what it holds, by tag, as it told last; empty once it cannot be reached.
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
        self._conduct: dict[str, _Conduct] = {}  # by tag: a broken canary says nothing of the stable model beside it

    @property
    def is_late(self) -> bool:
        """Whether it was too busy to tell what it holds when it was last asked, or hangs."""
        return self._num_late > 0

    def is_ejected(self, tag: str) -> bool:
        """Say whether the model failed here so often that other endpoints are asked while there are others."""
        return tag in self._conduct and self._conduct[tag].is_ejected

    async def ask(self) -> None:
        """Ask which models it holds."""
        try:
            with errors_of(self._stage):
                answer = await self.stub.ListModels(model_pb2.ListModelsRequest(), timeout=_ASK_TIMEOUT_S)
        except DeadlineExceeded:
            # What it holds is not forgotten: when one of two replicas dies, the other has no time to tell. A server
            # that hangs is found out by the channel's keepalive, which then cannot reach it.
            self._num_late += 1
            self.answers = self.answers and self._num_late < _LATE_TO_BE_LAST
        except TandemError:
            self._forget()
        else:
            self._num_late = 0
            self.answers, self.models = True, {info.tag: info for info in answer.models}
            self._conduct = {tag: conduct for tag, conduct in self._conduct.items() if tag in self.models}

    @contextmanager
    def calling(self, tag: str) -> Iterator[None]:
        """Count a call of a model for the length of the block, and note how it ended.

        Raises:
            Unavailable: reason 'MODEL_ABSENT', it does not hold the model any more.
        """
        conduct = self._conduct.setdefault(tag, _Conduct(self._clock))
        self.num_running += 1
        try:
            yield
        except TandemError as error:
            if isinstance(error, NotFound) and error.reason == "UNKNOWN_TAG":
                # It started anew, or the model was unloaded, since it was last asked. No client named that tag.
                self.models.pop(tag, None)
                raise absent(self._stage, tag) from None
            self._note_error(tag, conduct, error)
            raise
        else:
            conduct.note_success()
        finally:
            self.num_running -= 1

    def _note_error(self, tag: str, conduct: _Conduct, error: TandemError) -> None:
        if isinstance(error, Unavailable) and error.reason == unreachable(self._stage).reason:
            self._forget()
        elif isinstance(error, Unavailable | Internal):
            if ejection_s := conduct.note_failure():
                EJECTIONS.labels(self._stage).inc()
                _log.warning(
                    "model left out at an endpoint",
                    stage=self._stage,
                    tag=tag,
                    address=self.address,
                    seconds=ejection_s,
                    reason=error.reason,
                )
        elif not isinstance(error, ResourceExhausted):
            conduct.note_refusal()

    def _forget(self) -> None:
        """Take it for gone until it answers when it is asked again."""
        self.answers, self.models, self._num_late = False, {}, 0
