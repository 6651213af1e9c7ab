"""Mirror requests to the canary without showing its answers.

A mirrored request never delays or fails the real one. It runs as its own task, at the lowest priority of the decoder,
and at most `max_running` run at once. Requests beyond this limit are dropped and counted.
"""

import asyncio
from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter

from chassis.deadline import Deadline
from chassis.errors import TandemError
from gateway.admission import Tenant
from gateway.answer import ExchangeBuilder, Report, Send
from gateway.rollout.answer_rules import AnswerRules
from gateway.rollout.counted_request import outcome_of
from gateway.rollout.policy import Counts, Mirrored
from gateway.rollout.traffic import Choice, Traffic, is_client_error
from tandem.v1 import gateway_pb2, sampling_pb2

MIRRORED_REQUESTS = Counter(
    "tandem_rollout_shadow_requests",
    "Mirrored requests by outcome: answered, failed or dropped. Of the answered greedy ones: compared, equal, worse "
    "and better.",
    ["release", "outcome"],
)

_LOWEST_PRIORITY = -100  # in the contract

_log = structlog.get_logger()


@dataclass(slots=True)
class _Answer:
    """The text of one answer so far."""

    texts: list[str] = field(default_factory=list)
    is_complete: bool = False

    def add(self, response: gateway_pb2.GatewayGenerateResponse) -> None:
        if response.HasField("finished"):
            self.is_complete = True
        else:
            self.texts.append(response.delta.text)


@dataclass(slots=True, kw_only=True)
class _Pair:
    """The real and the mirrored answer of one request."""

    choice: Choice
    is_greedy: bool  # sampled answers differ by chance
    sampling: sampling_pb2.SamplingOptions
    real: _Answer = field(default_factory=_Answer)
    mirrored: _Answer = field(default_factory=_Answer)


class Mirror:
    """The mirrored requests of this gateway. For one event loop."""

    def __init__(self, traffic: Traffic, exchanges: ExchangeBuilder, rules: AnswerRules, *, max_running: int) -> None:
        self._traffic = traffic
        self._rules = rules
        self._exchanges = exchanges
        self._max_running = max_running
        self._tasks: set[asyncio.Task[None]] = set()

    def start(
        self,
        choice: Choice,
        request: gateway_pb2.GatewayGenerateRequest,
        tenant: Tenant,
        deadline: Deadline,
        send: Send,
    ) -> Send:
        """Mirror a request if it was chosen for this.

        Returns:
            The function to send the real answer with. It calls `send` and compares the answers.
        """
        if choice.mirror_to is None:
            return send
        if len(self._tasks) >= self._max_running:
            self._count(choice, "dropped")
            return send
        pair = _Pair(choice=choice, is_greedy=_is_greedy(request, choice), sampling=request.sampling)
        task = asyncio.create_task(self._run(choice.mirror_to, request, tenant, deadline, pair))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        async def send_and_compare(response: gateway_pb2.GatewayGenerateResponse) -> None:
            await send(response)
            pair.real.add(response)
            if pair.real.is_complete:
                self._compare(pair)

        return send_and_compare

    async def close(self) -> None:
        """Cancel the mirrored requests in flight."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(
        self,
        name: str,
        request: gateway_pb2.GatewayGenerateRequest,
        tenant: Tenant,
        deadline: Deadline,
        pair: _Pair,
    ) -> None:
        """Send a request to a release and count the outcome.

        Raises nothing except cancellation.
        """
        report = Report(is_mirrored=True)

        async def keep(response: gateway_pb2.GatewayGenerateResponse) -> None:
            pair.mirrored.add(response)

        try:
            async with asyncio.timeout(deadline.remaining_s()), self._traffic.keep_open(name) as release:
                exchange = await self._exchanges.build(
                    request, release, tenant, deadline=deadline, report=report, priority=_LOWEST_PRIORITY
                )
                await exchange.run(keep)
        except Exception as error:
            if is_client_error(error):
                return
            if not isinstance(error, TandemError | TimeoutError):
                _log.exception("mirrored request failed")
            self._traffic.count("shadow", pair.choice.window, outcome_of(report, failed=True))
            MIRRORED_REQUESTS.labels(name, "failed").inc()
            return
        self._traffic.count("shadow", pair.choice.window, outcome_of(report, failed=False))
        MIRRORED_REQUESTS.labels(name, "answered").inc()
        pair.mirrored.is_complete = True
        self._compare(pair)

    def _compare(self, pair: _Pair) -> None:
        if not (pair.is_greedy and pair.real.is_complete and pair.mirrored.is_complete):
            return
        self._count(pair.choice, "compared")
        real, mirrored = "".join(pair.real.texts), "".join(pair.mirrored.texts)
        if real == mirrored:
            self._count(pair.choice, "equal")
            return
        real_breaks, mirrored_breaks = (self._rules.breaks(text, pair.sampling) for text in (real, mirrored))
        if real_breaks != mirrored_breaks:
            self._count(pair.choice, "worse" if mirrored_breaks else "better")

    def _count(self, choice: Choice, number: Mirrored) -> None:
        counts = Counts()
        counts.add("shadow", number)
        self._traffic.add_counts(choice.window, counts)
        MIRRORED_REQUESTS.labels(choice.mirror_to, number).inc()


def _is_greedy(request: gateway_pb2.GatewayGenerateRequest, choice: Choice) -> bool:
    """Return whether the request is answered with greedy decoding."""
    if request.sampling.HasField("temperature"):
        return request.sampling.temperature == 0
    return choice.release.default_sampling().temperature == 0
