"""Mirrored requests: a candidate release is asked the same, nobody sees its answer, and what it did is counted.

A mirrored request never holds up or fails the real one: it runs beside it as a task of its own, last in line at the
decoder, in one of a few places; where all are taken it is dropped and counted as that.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass, field

import structlog

from chassis.deadline import Deadline
from chassis.errors import TandemError
from gateway.admission import Tenant
from gateway.answer import ExchangeBuilder, Report, Send
from gateway.rollout import metrics
from gateway.rollout.tally import outcome_of
from gateway.rollout.traffic import Choice, Traffic, is_clients_own
from tandem.v1 import gateway_pb2

_LAST_IN_LINE = -100  # the contract's lowest priority

_log = structlog.get_logger()


@dataclass(slots=True)
class _Answer:
    """The text of one answer as it comes."""

    pieces: list[str] = field(default_factory=list)
    is_complete: bool = False

    def see(self, response: gateway_pb2.GatewayGenerateResponse) -> None:
        if response.HasField("finished"):
            self.is_complete = True
        else:
            self.pieces.append(response.delta.text)


@dataclass(slots=True, kw_only=True)
class _Pair:
    """The real answer and the mirrored one, compared by whichever ends last."""

    choice: Choice
    is_greedy: bool  # else two answers differ by chance
    real: _Answer = field(default_factory=_Answer)
    mirrored: _Answer = field(default_factory=_Answer)


class Mirror:
    """The mirrored requests of this gateway. For one event loop."""

    def __init__(
        self,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        *,
        max_running: int,
    ) -> None:
        self._traffic = traffic
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
        """Begin to mirror a request where that was chosen; return what to send the real answer with."""
        if choice.mirror_to is None:
            return send
        if len(self._tasks) >= self._max_running:
            self._count(choice, "dropped")
            return send
        pair = _Pair(choice=choice, is_greedy=request.sampling.temperature == 0)
        task = asyncio.create_task(self._mirror(choice.mirror_to, request, tenant, deadline, pair))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        async def send_and_keep(response: gateway_pb2.GatewayGenerateResponse) -> None:
            await send(response)
            pair.real.see(response)
            if pair.real.is_complete:
                self._compare(pair)

        return send_and_keep

    async def close(self) -> None:
        """End what is being mirrored."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _mirror(
        self,
        name: str,
        request: gateway_pb2.GatewayGenerateRequest,
        tenant: Tenant,
        deadline: Deadline,
        pair: _Pair,
    ) -> None:
        """Ask the candidate and count how it did. Never raises, but when it is cancelled."""
        report = Report(is_mirrored=True)

        async def keep(response: gateway_pb2.GatewayGenerateResponse) -> None:
            pair.mirrored.see(response)

        try:
            async with asyncio.timeout(deadline.remaining_s()), self._traffic.keep_open(name) as release:
                exchange = await self._exchanges.build(
                    request, release, tenant, deadline=deadline, report=report, priority=_LAST_IN_LINE
                )
                await exchange.run(keep)
        except Exception as error:
            if isinstance(error, TandemError) and is_clients_own(error):
                return
            if not isinstance(error, TandemError | TimeoutError):
                _log.exception("mirrored request failed")
            self._traffic.count("shadow", pair.choice.window, outcome_of(report, failed=True))
            metrics.SHADOW_REQUESTS.labels(name, "failed").inc()
            return
        self._traffic.count("shadow", pair.choice.window, outcome_of(report, failed=False))
        metrics.SHADOW_REQUESTS.labels(name, "answered").inc()
        pair.mirrored.is_complete = True
        self._compare(pair)

    def _compare(self, pair: _Pair) -> None:
        if not (pair.is_greedy and pair.real.is_complete and pair.mirrored.is_complete):
            return
        self._count(pair.choice, "compared")
        if "".join(pair.real.pieces) == "".join(pair.mirrored.pieces):
            self._count(pair.choice, "equal")

    def _count(self, choice: Choice, number: str) -> None:
        self._traffic.add(choice.window, Counter({f"shadow/{number}": 1}))
        metrics.SHADOW_REQUESTS.labels(choice.mirror_to, number).inc()
