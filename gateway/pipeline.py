"""The eight steps of one answer. Text goes ahead of pictures, pictures are encoded side by side, tokens stream back."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from chassis.errors import DeadlineExceeded, Internal, TandemError
from gateway import metrics
from gateway.answer import AnswerText
from gateway.deadline import Deadline
from gateway.encoding import visual_tokens
from gateway.images import Picture
from gateway.language_call import CallEndedError, LanguageCall
from gateway.prompt import TextSegment
from gateway.question import Question, QuestionMaker
from gateway.report import Report
from gateway.visual_cache import VisualCache
from tandem.v1 import gateway_pb2, language_pb2, sampling_pb2, tensor_pb2

Send = Callable[[gateway_pb2.GatewayGenerateResponse], Awaitable[None]]


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
        release, outcome = "", "CANCELLED"
        try:
            with metrics.RUNNING.track_inprogress():
                async with asyncio.timeout(deadline.remaining_s()):
                    question = await self._questions.make(request, pin)
                    release = question.route.release.name
                    report.mark_prepared()
                    finished = await self._converse(question, report, deadline, send)
                    await send(gateway_pb2.GatewayGenerateResponse(finished=finished))
            outcome = sampling_pb2.FinishReason.Name(finished.finish_reason)
        except TimeoutError:
            outcome = "DEADLINE_EXCEEDED"
            raise DeadlineExceeded("The time of the request ran out.") from None
        except TandemError as error:
            outcome = error.reason
            raise
        finally:
            metrics.REQUESTS.labels(release, outcome).inc()

    async def _converse(
        self, question: Question, report: Report, deadline: Deadline, send: Send
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Feed the prompt and read the answer at the same time; whichever fails first ends both."""
        call = LanguageCall(question.route.language.stub, deadline)
        try:
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(self._feed(call, question, report, deadline))
                finished = await self._read(call, question, report, send)
                feeding.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            call.cancel()
        return finished

    async def _feed(self, call: LanguageCall, question: Question, report: Report, deadline: Deadline) -> None:
        """Write the prompt in its order: text as soon as its turn comes, a picture once it is encoded."""
        report.images.extend(gateway_pb2.ImageReport(sha256=picture.sha256) for picture in question.pictures)
        async with AsyncExitStack() as pins, asyncio.TaskGroup() as tasks:
            encodings = [
                tasks.create_task(self._encode(picture, image, question, report, deadline, pins))
                for picture, image in zip(question.pictures, report.images, strict=True)
            ]
            try:
                await call.write(question.start())
                for segment in question.segments:
                    if isinstance(segment, TextSegment):
                        message = language_pb2.TextSegment(token_ids=segment.token_ids)
                        await call.write(language_pb2.GenerateRequest(text=message))
                    else:
                        tokens = tensor_pb2.VisualTokens.FromString(await encodings[segment.index])
                        picture = language_pb2.ImageSegment(visual_tokens=tokens)
                        await call.write(language_pb2.GenerateRequest(image=picture))
                await call.end_prompt()
            except CallEndedError:  # whoever reads learns why
                for encoding in encodings:
                    encoding.cancel()

    async def _encode(
        self,
        picture: Picture,
        image: gateway_pb2.ImageReport,
        question: Question,
        report: Report,
        deadline: Deadline,
        pins: AsyncExitStack,
    ) -> bytes:
        replica = question.route.vision
        assert replica is not None, "a question with pictures is routed with a vision replica"
        found = await visual_tokens(picture, replica, cache=self._cache, pins=pins, deadline=deadline)
        image.cache_level = gateway_pb2.CACHE_LEVEL_GATEWAY if found.was_cached else gateway_pb2.CACHE_LEVEL_MISS
        image.num_visual_tokens = replica.info.vision.num_visual_tokens
        image.ready_ms = report.ms_since_start()
        return found.data

    async def _read(
        self, call: LanguageCall, question: Question, report: Report, send: Send
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Pass text on as it becomes visible until the answer ends or a stop string is hit."""
        release = question.route.release
        text = AnswerText(release.vocabulary, question.stops)
        ending = language_pb2.GenerateFinished()
        while not text.stopped:
            response = await call.read()
            if response is None:
                raise Internal("The language service ended an answer without a word.", reason="LANGUAGE_FAILED")
            if response.HasField("finished"):
                ending = response.finished
                break
            report.mark_tokens(release.name)
            await _send_delta(text.push(response.tokens.token_ids, response.tokens.logprobs), send)
        await _send_delta(text.finish(), send)
        return _finished(question, report, text, ending)


async def _send_delta(delta: gateway_pb2.TextDelta | None, send: Send) -> None:
    if delta is not None:
        await send(gateway_pb2.GatewayGenerateResponse(delta=delta))


def _finished(
    question: Question, report: Report, text: AnswerText, ending: language_pb2.GenerateFinished
) -> gateway_pb2.GatewayGenerateFinished:
    """Return the last message. `ending` is empty where a stop string ended the answer before the model did."""
    usage = sampling_pb2.Usage(
        prompt_tokens=question.num_prompt_tokens,
        visual_tokens=question.num_visual_tokens,
        cached_prompt_tokens=ending.usage.cached_prompt_tokens,
        completion_tokens=text.num_tokens,
    )
    return gateway_pb2.GatewayGenerateFinished(
        finish_reason=sampling_pb2.FINISH_REASON_STOP if text.stopped else ending.finish_reason,
        usage=usage,
        timings=report.timings(ending.timings),
        release=question.route.release.proto(),
        images=report.images,
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a group of tasks: the others followed from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
