"""The eight steps of a request under its one deadline, counted however it ends."""

import asyncio

from chassis.errors import DeadlineExceeded, TandemError
from gateway import metrics
from gateway.deadline import Deadline
from gateway.exchange import Exchange, Send
from gateway.question import QuestionMaker
from gateway.report import Report
from gateway.visual_cache import VisualCache
from tandem.v1 import gateway_pb2, sampling_pb2


class Pipeline:
    """Answers requests; holds nothing of any of them once it is answered, fails or is cancelled."""

    def __init__(self, questions: QuestionMaker, cache: VisualCache) -> None:
        self._questions = questions
        self._cache = cache

    async def answer(
        self, request: gateway_pb2.GatewayGenerateRequest, *, pin: str | None, deadline: Deadline, send: Send
    ) -> None:
        """Answer one request, piece by piece, the last one with how it ended.

        Args:
            request: as it came.
            pin: the release the client asks for; None leaves it to the gateway.
            deadline: when the request's time is up.
            send: takes each message; waits while the client is slow.

        Raises:
            TandemError: why there is no answer, or no more of it.
        """
        report = Report()
        release, outcome = "", "INTERNAL"
        try:
            with metrics.RUNNING.track_inprogress():
                async with asyncio.timeout(deadline.remaining_s()):
                    question = await self._questions.make(request, pin)
                    release = question.route.release.name
                    report.mark_prepared()
                    exchange = Exchange(
                        question=question, deadline=deadline, cache=self._cache, report=report, send=send
                    )
                    finished = await exchange.run()
                    await send(gateway_pb2.GatewayGenerateResponse(finished=finished))
            outcome = sampling_pb2.FinishReason.Name(finished.finish_reason)
        except TimeoutError:
            outcome = "DEADLINE_EXCEEDED"
            raise DeadlineExceeded("The time of the request ran out.") from None
        except TandemError as error:
            outcome = error.reason
            raise
        except asyncio.CancelledError:
            outcome = "CANCELLED"
            raise
        finally:
            metrics.REQUESTS.labels(release, outcome).inc()
