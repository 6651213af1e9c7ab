"""The eight steps of a request under its one deadline, counted however it ends."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter

from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded, TandemError
from gateway.admission import AdmissionController, Tenant
from gateway.answer import ExchangeBuilder, Report, Send
from gateway.rollout.mirror import Mirror
from gateway.rollout.traffic import Choice, Traffic
from tandem.v1 import gateway_pb2, sampling_pb2

REQUESTS = Counter(
    "tandem_gateway_requests",
    "Answers that ended, by release and outcome: the finish reason, or the reason of the error.",
    ["release", "outcome"],
)
TENANT_REQUESTS = Counter(
    "tandem_gateway_tenant_requests", "Answers that ended, by tenant and outcome.", ["tenant", "outcome"]
)
RELEASE_TOKENS = Counter(
    "tandem_gateway_release_tokens",
    "Tokens of answers that were completed, by release and kind: prompt, visual, cached_prompt, completion.",
    ["release", "kind"],
)


@dataclass(slots=True)
class _Ending:
    """What is counted of one request."""

    release: str = ""  # empty until one is chosen
    outcome: str = "INTERNAL"  # the finish reason, or the reason of the error


class Pipeline:
    """Answers requests; holds nothing of any of them once it is answered, fails or is cancelled."""

    def __init__(
        self,
        admission: AdmissionController,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        mirror: Mirror,
    ) -> None:
        self._admission = admission
        self._traffic = traffic
        self._exchanges = exchanges
        self._mirror = mirror

    async def answer(
        self,
        request: gateway_pb2.GatewayGenerateRequest,
        *,
        tenant: Tenant,
        pin: str | None,
        deadline: Deadline,
        send: Send,
    ) -> None:
        """Answer one request, piece by piece, the last one with how it ended.

        Args:
            request: as it came.
            tenant: who asks.
            pin: the release the client asks for; None leaves it to the gateway.
            deadline: when the request's time is up.
            send: takes each message; waits while the client is slow.

        Raises:
            TandemError: why there is no answer, or no more of it.
        """
        report = Report()
        with self._counted(tenant, report) as ending:
            try:
                async with (
                    asyncio.timeout(deadline.remaining_s()),
                    self._admission.admit(tenant, request.ByteSize()),
                    self._traffic.route(request.routing_key, pin, deadline=deadline, report=report) as choice,
                ):
                    ending.release = choice.release.name
                    finished = await self._exchange(choice, request, tenant, deadline, report, send)
            except TimeoutError:
                raise _too_late(report) from None
            ending.outcome = sampling_pb2.FinishReason.Name(finished.finish_reason)
            _count_usage(ending.release, finished.usage)

    async def _exchange(
        self,
        choice: Choice,
        request: gateway_pb2.GatewayGenerateRequest,
        tenant: Tenant,
        deadline: Deadline,
        report: Report,
        send: Send,
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Ask the release that was chosen and pass its answer on to the end."""
        exchange = await self._exchanges.build(request, choice.release, tenant, deadline=deadline, report=report)
        self._admission.take_prompt_tokens(tenant, exchange.question.num_prompt_tokens)
        report.mark_prepared()
        send = self._mirror.start(choice, request, tenant, deadline, send)
        finished = await exchange.run(send)
        await send(gateway_pb2.GatewayGenerateResponse(finished=finished))
        return finished

    @contextmanager
    def _counted(self, tenant: Tenant, report: Report) -> Iterator[_Ending]:
        """Charge and count one request when the block ends, however it does."""
        ending = _Ending()
        try:
            yield ending
        except TandemError as error:
            ending.outcome = error.reason
            raise
        except asyncio.CancelledError:
            ending.outcome = "CANCELLED"
            raise
        finally:
            self._admission.charge_answer_tokens(tenant, report.num_answer_tokens)
            REQUESTS.labels(ending.release, ending.outcome).inc()
            TENANT_REQUESTS.labels(tenant.name, ending.outcome).inc()


def _too_late(report: Report) -> DeadlineExceeded:
    """Return the error of a request whose time is up; the client learns how much of the answer it paid for."""
    produced = {"completion_tokens": str(report.num_answer_tokens)} if report.num_answer_tokens else {}
    return DeadlineExceeded("The time of the request ran out.", metadata=produced)


def _count_usage(release: str, usage: sampling_pb2.Usage) -> None:
    """Count the tokens of a completed answer."""
    for kind in ("prompt", "visual", "cached_prompt", "completion"):
        RELEASE_TOKENS.labels(release, kind).inc(getattr(usage, f"{kind}_tokens"))
