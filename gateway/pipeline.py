"""The eight steps of a request under its one deadline, counted however it ends."""

import asyncio

from chassis.errors import DeadlineExceeded, TandemError
from gateway import metrics
from gateway.admission import Admission
from gateway.deadline import Deadline
from gateway.encoding import VisualTokenSource
from gateway.exchange import Exchange, Send
from gateway.filters import Filters
from gateway.question import QuestionMaker
from gateway.report import Report
from gateway.rollout.shadow import Shadow
from gateway.rollout.traffic import Traffic
from gateway.tenants import Tenant
from tandem.v1 import gateway_pb2, sampling_pb2


class Pipeline:
    """Answers requests; holds nothing of any of them once it is answered, fails or is cancelled."""

    def __init__(
        self,
        admission: Admission,
        traffic: Traffic,
        questions: QuestionMaker,
        visual_tokens: VisualTokenSource,
        filters: Filters,
        shadow: Shadow,
    ) -> None:
        self._admission = admission
        self._traffic = traffic
        self._questions = questions
        self._visual_tokens = visual_tokens
        self._filters = filters
        self._shadow = shadow

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
        release, outcome = "", "INTERNAL"
        try:
            async with (
                asyncio.timeout(deadline.remaining_s()),
                self._admission.answering(tenant, request.ByteSize()),
                self._traffic.carry(request.routing_key, pin, deadline=deadline, report=report) as choice,
            ):
                release = choice.release.name
                question = await self._questions.make(request, choice.release, tenant)
                self._admission.take_prompt(tenant, question.num_prompt_tokens)
                report.mark_prepared()
                send = self._shadow.beside(choice, request, tenant, deadline, send)
                exchange = Exchange(
                    question=question,
                    deadline=deadline,
                    visual_tokens=self._visual_tokens,
                    filters=self._filters,
                    report=report,
                    send=send,
                )
                finished = await exchange.run()
                await send(gateway_pb2.GatewayGenerateResponse(finished=finished))
            outcome = sampling_pb2.FinishReason.Name(finished.finish_reason)
            metrics.count_usage(release, finished.usage)
        except TimeoutError:
            outcome = "DEADLINE_EXCEEDED"
            produced = {"completion_tokens": str(report.num_answer_tokens)} if report.num_answer_tokens else {}
            raise DeadlineExceeded("The time of the request ran out.", metadata=produced) from None
        except TandemError as error:
            outcome = error.reason
            raise
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            raise
        finally:
            self._admission.charge_answer(tenant, report.num_answer_tokens)
            metrics.REQUESTS.labels(release, outcome).inc()
            metrics.TENANT_REQUESTS.labels(tenant.name, outcome).inc()
