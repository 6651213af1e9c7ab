"""Send requests to the other release too, without showing its answers.

A share of each release's requests is mirrored. A constrained request is sent to the other release as well if its answer
does not keep the constraint, because many constraints cannot be kept by any model. Mirrored requests never delay or
fail the real ones. They run as tasks of their own, at the lowest priority of the decoder, and at most `max_running` run
at once. Their bytes are reserved, images by digest included. Requests beyond these limits are dropped and counted.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import structlog
from prometheus_client import Counter

from chassis.deadline import Deadline
from chassis.errors import InvalidArgument, ResourceExhausted, TandemError
from gateway.admission import AdmissionController, Tenant
from gateway.answer import ExchangeBuilder, Report, Send
from gateway.rollout.answer_pairs import AnswerPair
from gateway.rollout.answer_rules import AnswerRules
from gateway.rollout.blame import is_client_error, is_constraint_failure
from gateway.rollout.counted_request import outcome_of
from gateway.rollout.policy import Arm, Counts, Number
from gateway.rollout.traffic import Choice, Traffic
from tandem.v1 import gateway_pb2

MIRRORED_REQUESTS = Counter(
    "tandem_rollout_shadow_requests",
    "Mirrored requests by outcome: answered, failed or dropped. Of the answered greedy ones: compared, equal, worse "
    "and better. The release is the one that they are mirrored to.",
    ["release", "outcome"],
)
CONSTRAINT_FAILURES = Counter(
    "tandem_rollout_constraint_failures",
    "Answers that do not keep their constraint, by release: failure. Those that the other release keeps, again: fault.",
    ["release", "kind"],
)

_LOWEST_PRIORITY = -100  # in the contract
_CHECK_TIMEOUT_S = 60.0  # of the other release's answer to a constrained request

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Mirrored:
    """A request that the other release may answer, too."""

    choice: Choice
    request: gateway_pb2.GatewayGenerateRequest
    tenant: Tenant
    pair: AnswerPair
    is_drawn: bool  # for the share that is mirrored


class Mirror:
    """The mirrored requests of this gateway. For one event loop."""

    def __init__(
        self,
        admission: AdmissionController,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        rules: AnswerRules,
        *,
        max_running: int,
    ) -> None:
        self._admission = admission
        self._traffic = traffic
        self._rules = rules
        self._exchanges = exchanges
        self._max_running = max_running
        self._tasks: set[asyncio.Task[None]] = set()

    @contextmanager
    def watch(
        self,
        choice: Choice,
        request: gateway_pb2.GatewayGenerateRequest,
        tenant: Tenant,
        deadline: Deadline,
        send: Send,
    ) -> Iterator[Send]:
        """Watch the answer in the block, and mirror its request.

        Yields:
            The function to send the real answer with. It calls `send` and looks at the answer.
        """
        is_drawn = choice.is_mirrored and self._has_room(choice)
        if choice.arm is None or not (is_drawn or request.sampling.WhichOneof("constraint")):
            yield send
            return
        pair = AnswerPair(request, self._rules, is_greedy=_is_greedy(request, choice))
        mirrored = _Mirrored(choice=choice, request=request, tenant=tenant, pair=pair, is_drawn=is_drawn)
        if is_drawn:
            self._start(mirrored, deadline)

        async def send_and_look(response: gateway_pb2.GatewayGenerateResponse) -> None:
            await send(response)
            pair.real.add(response)
            if pair.real.has_ended:
                self._end_real(mirrored)

        try:
            yield send_and_look
        except InvalidArgument as error:
            if is_constraint_failure(error):
                pair.real.fail()
                self._end_real(mirrored)
            raise

    async def close(self) -> None:
        """Cancel the mirrored requests in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _has_room(self, choice: Choice) -> bool:
        """Return whether one more may run. If not, count it."""
        if len(self._tasks) < self._max_running:
            return True
        self._drop(choice)
        return False

    def _drop(self, choice: Choice) -> None:
        self._count(choice, _shadow(choice), "dropped")
        MIRRORED_REQUESTS.labels(choice.other, "dropped").inc()

    def _start(self, mirrored: _Mirrored, deadline: Deadline) -> None:
        task = asyncio.create_task(self._run(mirrored, deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, mirrored: _Mirrored, deadline: Deadline) -> None:
        """Ask the other release and count the outcome.

        Raises nothing except cancellation.
        """
        choice, request, pair = mirrored.choice, mirrored.request, mirrored.pair
        report = Report(is_mirrored=True, is_constrained=bool(request.sampling.WhichOneof("constraint")))

        async def keep(response: gateway_pb2.GatewayGenerateResponse) -> None:
            pair.mirrored.add(response)

        try:
            async with asyncio.timeout(deadline.remaining_s()), self._traffic.keep_open(choice.other) as release:
                with self._admission.reserve_mirrored(request.ByteSize()) as held:
                    exchange = await self._exchanges.build(
                        request,
                        release,
                        mirrored.tenant,
                        deadline=deadline,
                        report=report,
                        priority=_LOWEST_PRIORITY,
                        held=held,
                    )
                    finished = await exchange.run(keep)
            pair.mirrored.add(gateway_pb2.GatewayGenerateResponse(finished=finished))
        except Exception as error:
            if is_constraint_failure(error):
                pair.mirrored.fail()
            elif is_client_error(error):
                if isinstance(error, ResourceExhausted):
                    self._drop(choice)
                return
            elif not isinstance(error, TandemError | TimeoutError):
                _log.exception("mirrored request failed")
        if mirrored.is_drawn:
            has_failed = not pair.mirrored.has_ended
            self._traffic.count(_shadow(choice), choice.window, outcome_of(report, failed=has_failed))
            MIRRORED_REQUESTS.labels(choice.other, "failed" if has_failed else "answered").inc()
        self._compare(mirrored)

    def _end_real(self, mirrored: _Mirrored) -> None:
        """Act on the end of the real answer."""
        choice = mirrored.choice
        if mirrored.pair.real.keeps_constraint is False and choice.arm is not None and choice.counts:
            self._count(choice, choice.arm, "constraint_failures")
            CONSTRAINT_FAILURES.labels(choice.release.name, "failure").inc()
            if not mirrored.is_drawn and self._has_room(choice):
                self._start(mirrored, Deadline.after(_CHECK_TIMEOUT_S))
        self._compare(mirrored)

    def _compare(self, mirrored: _Mirrored) -> None:
        """Count the comparison, once both answers have ended."""
        choice, pair = mirrored.choice, mirrored.pair
        if choice.arm is None or not (pair.real.has_ended and pair.mirrored.has_ended):
            return
        if pair.real.keeps_constraint is False and pair.mirrored.keeps_constraint and choice.counts:
            self._count(choice, choice.arm, "constraint_faults")
            CONSTRAINT_FAILURES.labels(choice.release.name, "fault").inc()
        if not (mirrored.is_drawn and pair.is_greedy):
            return
        for number in pair.comparison(is_canary_real=choice.arm == "canary"):
            self._count(choice, _shadow(choice), number)
            MIRRORED_REQUESTS.labels(choice.other, number).inc()

    def _count(self, choice: Choice, arm: Arm, number: Number) -> None:
        counts = Counts()
        counts.add(arm, number)
        self._traffic.add_counts(choice.window, counts)


def _shadow(choice: Choice) -> Arm:
    """Return the arm of the mirrored answers."""
    return "shadow" if choice.arm == "stable" else "shadow_stable"


def _is_greedy(request: gateway_pb2.GatewayGenerateRequest, choice: Choice) -> bool:
    """Return whether the request is answered with greedy decoding."""
    if request.sampling.HasField("temperature"):
        return request.sampling.temperature == 0
    return choice.release.default_sampling().temperature == 0
