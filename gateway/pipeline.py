"""Run a request from admission to its last message."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client import Counter

from chassis.deadline import Deadline
from chassis.errors import DeadlineExceeded, TandemError
from chassis.request_id import current_request_id
from gateway.admission import ANONYMOUS, AdmissionController, Tenant
from gateway.answer import ExchangeBuilder, Report, Send
from gateway.images import Held
from gateway.operations import Ending, RequestWindow
from gateway.rollout.blame import is_client_error
from gateway.rollout.feedback import Feedback
from gateway.rollout.mirror import Mirror
from gateway.rollout.traffic import Choice, Traffic
from gateway.stages import Pin
from tandem.v1 import gateway_pb2, sampling_pb2

REQUESTS = Counter(
    "tandem_gateway_requests",
    "Finished requests, by release and outcome: the finish reason, or the reason of the error.",
    ["release", "outcome"],
)
TENANT_REQUESTS = Counter(
    "tandem_gateway_tenant_requests", "Finished requests, by tenant and outcome.", ["tenant", "outcome"]
)
RELEASE_TOKENS = Counter(
    "tandem_gateway_release_tokens",
    "Tokens of complete answers, by release and kind: prompt, visual, cached_prompt, completion.",
    ["release", "kind"],
)


@dataclass(slots=True)
class _Labels:
    """What is counted of one request."""

    release: str = ""  # empty until a release is chosen
    outcome: str = "INTERNAL"  # the finish reason, or the reason of the error
    ending: Ending | None = "failed"  # None for an error that the client caused
    usage: sampling_pb2.Usage | None = None  # of a complete answer


class Pipeline:
    """Answers requests. All their resources are released when `answer` returns."""

    def __init__(
        self,
        admission: AdmissionController,
        traffic: Traffic,
        exchanges: ExchangeBuilder,
        mirror: Mirror,
        feedback: Feedback,
        window: RequestWindow,
    ) -> None:
        self._admission = admission
        self._traffic = traffic
        self._exchanges = exchanges
        self._mirror = mirror
        self._feedback = feedback
        self._window = window

    async def answer(
        self,
        request: gateway_pb2.GatewayGenerateRequest,
        *,
        tenant: Tenant,
        pin: Pin | None,
        deadline: Deadline,
        send: Send,
        peer: str = "",
    ) -> None:
        """Stream the answer to one request.

        The last message has the finish reason and the usage.

        Args:
            request: the client's request.
            tenant: owner of the request.
            pin: the release the client asks for. None lets the gateway choose.
            deadline: deadline of the whole request.
            send: passes a message on to the client, and waits while the client is slow.
            peer: the caller's address.

        Raises:
            TandemError: the request was refused, or its answer failed.
        """
        report = Report(is_constrained=bool(request.sampling.WhichOneof("constraint")))
        with self._count_at_end(tenant, report) as labels:
            try:
                async with (
                    asyncio.timeout(deadline.remaining_s()),
                    self._admission.admit(tenant, request.ByteSize()) as held,
                    self._traffic.route(
                        request.routing_key, pin, deadline=deadline, report=report, caller=_caller(tenant, peer)
                    ) as choice,
                ):
                    labels.release = choice.release.name
                    finished = await self._run_exchange(
                        choice, request, tenant, deadline, report, report.timed(send), held
                    )
            except TimeoutError:
                raise _deadline_exceeded(report) from None
            labels.outcome = sampling_pb2.FinishReason.Name(finished.finish_reason)
            labels.ending, labels.usage = "answered", finished.usage
            _count_tokens(labels.release, finished.usage)

    async def _run_exchange(
        self,
        choice: Choice,
        request: gateway_pb2.GatewayGenerateRequest,
        tenant: Tenant,
        deadline: Deadline,
        report: Report,
        send: Send,
        held: Held,
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Stream the chosen release's answer, and mirror the request."""
        exchange = await self._exchanges.build(
            request, choice.release, tenant, deadline=deadline, report=report, held=held
        )
        self._admission.take_prompt_tokens(tenant, exchange.question.num_prompt_tokens)
        report.mark_prepared()
        with self._mirror.watch(choice, request, tenant, deadline, send) as watched_send:
            finished = await exchange.run(watched_send)
            self._feedback.remember(tenant.name, current_request_id() or "", choice)
            await watched_send(gateway_pb2.GatewayGenerateResponse(finished=finished))
        return finished

    @contextmanager
    def _count_at_end(self, tenant: Tenant, report: Report) -> Iterator[_Labels]:
        """Charge and count the request when the block ends.

        This also happens after an error or a cancellation.
        """
        labels = _Labels()
        try:
            yield labels
        except TandemError as error:
            labels.outcome = error.reason
            labels.ending = None if is_client_error(error) else "failed"
            raise
        except asyncio.CancelledError:
            labels.outcome, labels.ending = "CANCELLED", "cancelled"
            raise
        finally:
            self._admission.charge_answer_tokens(tenant, report.num_answer_tokens)
            REQUESTS.labels(labels.release, labels.outcome).inc()
            TENANT_REQUESTS.labels(tenant.name, labels.outcome).inc()
            if labels.release and labels.ending is not None:
                self._window.add(labels.release, labels.ending, report, labels.usage)


def _caller(tenant: Tenant, peer: str) -> str:
    """Return a request's sender: a tenant, else a host."""
    return tenant.name if tenant.name != ANONYMOUS else peer.rpartition(":")[0]


def _deadline_exceeded(report: Report) -> DeadlineExceeded:
    """Return the error of a passed deadline.

    Its metadata has the number of answer tokens, which are charged.
    """
    num_tokens = report.num_answer_tokens
    return DeadlineExceeded(
        "The deadline passed before the end of the answer: set a later one, or ask for fewer tokens.",
        metadata={"completion_tokens": str(num_tokens)} if num_tokens else {},
    )


def _count_tokens(release: str, usage: sampling_pb2.Usage) -> None:
    """Count the tokens of a complete answer."""
    for kind in ("prompt", "visual", "cached_prompt", "completion"):
        RELEASE_TOKENS.labels(release, kind).inc(getattr(usage, f"{kind}_tokens"))
