"""One question and its answer: the prompt goes out while images are encoded, and tokens come back as text."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chassis.deadline import Deadline
from chassis.errors import Internal, TandemError
from chassis.tracing import Attributes, span
from gateway.answer import exchange_metrics as metrics
from gateway.answer.question import Question
from gateway.answer.report import Report
from gateway.answer.text import AnswerText
from gateway.filters import Filters
from gateway.images import RequestImage, VisualTokenSource
from gateway.stages import CallEndedError, LanguageCall, Replica, with_failover
from processing import Segment, TextSegment
from tandem.v1 import gateway_pb2, language_pb2, sampling_pb2, tensor_pb2

if TYPE_CHECKING:
    from tandem.v1 import language_pb2_grpc

    LanguageReplica = Replica[language_pb2_grpc.LanguageServiceAsyncStub]

Send = Callable[[gateway_pb2.GatewayGenerateResponse], Awaitable[None]]


class _NoImageError(Exception):
    """An image has not been encoded, and its own task says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Steps 4 to 8 of one request; whatever it holds is given back when `run` ends, however that is."""

    question: Question
    deadline: Deadline
    visual_tokens: VisualTokenSource
    filters: Filters
    report: Report
    send: Send  # takes each message for the client; waits while the client is slow

    async def run(self) -> gateway_pb2.GatewayGenerateFinished:
        """Encode the images, feed the prompt and read the answer, all at the same time; the first failure ends it.

        A language replica that fails before its first token is replaced by another, which gets the prompt from its
        beginning; images that were encoded stay.

        Raises:
            TandemError: why there is no answer, or no more of it.
        """
        name = self.question.route.release.name
        with span(f"chat {name}", "client", _asked(self.question)) as chat:
            try:
                async with AsyncExitStack() as pins, asyncio.TaskGroup() as tasks:
                    encodings = self._encode_all(tasks, pins)
                    finished = await with_failover(
                        self.question.route.language,
                        lambda replica: self._converse(replica, encodings, pins),
                        may_repeat=lambda: not self.report.num_answer_tokens,
                    )
            except BaseExceptionGroup as group:
                error = _first(group)
                chat.fail(error.reason if isinstance(error, TandemError) else type(error).__name__)
                raise error from None
            chat.note(_answered(finished))
        return finished

    def _encode_all(self, tasks: asyncio.TaskGroup, pins: AsyncExitStack) -> list[asyncio.Task[bytes]]:
        images = self.question.images
        self.report.images.extend(gateway_pb2.ImageReport(sha256=image.sha256) for image in images)
        return [
            tasks.create_task(self._encode(image, report, pins))
            for image, report in zip(images, self.report.images, strict=True)
        ]

    async def _converse(
        self, replica: "LanguageReplica", encodings: list[asyncio.Task[bytes]], pins: AsyncExitStack
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Feed the prompt to one replica and read its answer at the same time."""
        call = LanguageCall(replica.stub, self.deadline)
        try:
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(self._feed(call, encodings))
                with metrics.stage_call(self.question.route.release.name, "language"):
                    finished = await self._read(call, pins)
                feeding.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            call.cancel()
        return finished

    async def _feed(self, call: LanguageCall, encodings: list[asyncio.Task[bytes]]) -> None:
        """Write the prompt in its order: text as soon as its turn comes, an image once it is encoded."""
        # Whoever reads learns why a call ended, and an image that failed ends the whole exchange.
        with suppress(CallEndedError, _NoImageError):
            await call.write(self.question.start())
            for segment in self.question.segments:
                await call.write(await self._message(segment, encodings))
            await call.end_prompt()

    async def _encode(self, image: RequestImage, report: gateway_pb2.ImageReport, pins: AsyncExitStack) -> bytes:
        """Return the serialized visual tokens of one image and fill in what is reported of it."""
        replica = self.question.route.vision
        assert replica is not None, "a question with images is routed with a vision replica"
        release = self.question.route.release.name
        with metrics.stage_call(release, "vision"), span("find visual tokens") as step:
            found = await self.visual_tokens.get(
                image, replica, cache_salt=self.question.cache_salt, pins=pins, deadline=self.deadline
            )
            step.note({"tandem.cache_level": gateway_pb2.CacheLevel.Name(found.level)})
        self.filters.check_image(found.entry.data, image.field)
        report.cache_level = found.level
        if found.similar is not None:
            report.similar_sha256 = found.similar.image_sha256
            report.similarity = found.similar.similarity
        report.num_visual_tokens = replica.info.vision.num_visual_tokens
        report.ready_ms = self.report.ms_since_start()
        metrics.count_image(release, report)
        return found.entry.data

    async def _message(self, segment: Segment, encodings: list[asyncio.Task[bytes]]) -> language_pb2.GenerateRequest:
        """Return a segment as it is sent, an image once its visual tokens are at hand."""
        if isinstance(segment, TextSegment):
            return language_pb2.GenerateRequest(text=language_pb2.TextSegment(token_ids=segment.token_ids))
        tokens = tensor_pb2.VisualTokens.FromString(await _result(encodings[segment.index]))
        if tokens.vision_digest != self.question.route.language.info.language.vision_digest:
            metrics.CROSSED_VISUAL_TOKENS.inc()  # route and cache see to it that this cannot happen
            raise Internal("Visual tokens came from another encoder than the decoder's.", reason="ENCODERS_CROSSED")
        return language_pb2.GenerateRequest(image=language_pb2.ImageSegment(visual_tokens=tokens))

    async def _read(self, call: LanguageCall, pins: AsyncExitStack) -> gateway_pb2.GatewayGenerateFinished:
        """Pass text on as it becomes visible until the answer ends or a stop string is hit."""
        release = self.question.route.release
        with self.filters.watching() as words:
            text = AnswerText(release.vocabulary, self.question.stops, words)
            ending = language_pb2.GenerateFinished()
            while text.ended_by is None:
                response = await self._next(call, text)
                if response.HasField("finished"):
                    ending = response.finished
                    break
                if response.HasField("prefilled"):
                    ending = _so_far(response.prefilled)
                    continue
                await pins.aclose()  # the prompt is not needed again
                delta = text.push(response.tokens.token_ids, response.tokens.logprobs)
                # As many as the answer has taken: a message may go on beyond a stop string.
                self.report.mark_tokens(release.name, text.num_tokens - self.report.num_answer_tokens)
                await self._send_delta(delta)
            await self._send_delta(text.finish())
        return self._finished(text, ending)

    async def _next(self, call: LanguageCall, text: AnswerText) -> language_pb2.GenerateResponse:
        """Return the next message of the answer; an error amid it comes with what there was until then."""
        try:
            response = await call.read()
            if response is None:
                raise Internal("The language service ended an answer without a word.", reason="LANGUAGE_FAILED")
        except TandemError as error:
            if not text.num_tokens:
                raise
            await self._send_delta(text.finish())
            raise type(error)(
                f"The answer broke off after {text.num_tokens} tokens. {error.message}",
                reason=error.reason,
                retry_after_s=error.retry_after_s,
                metadata={**error.metadata, "completion_tokens": str(text.num_tokens)},
            ) from error
        return response

    async def _send_delta(self, delta: gateway_pb2.TextDelta | None) -> None:
        if delta is not None:
            self.report.mark_text(delta.text)
            await self.send(gateway_pb2.GatewayGenerateResponse(delta=delta))

    def _finished(self, text: AnswerText, ending: language_pb2.GenerateFinished) -> gateway_pb2.GatewayGenerateFinished:
        """Return the last message; `ending` is what the language service told so far, or told last."""
        usage = sampling_pb2.Usage(
            prompt_tokens=self.question.num_prompt_tokens,
            visual_tokens=self.question.num_visual_tokens,
            cached_prompt_tokens=ending.usage.cached_prompt_tokens,
            completion_tokens=text.num_tokens,
        )
        return gateway_pb2.GatewayGenerateFinished(
            finish_reason=text.ended_by or ending.finish_reason,
            usage=usage,
            timings=self.report.timings(ending.timings),
            release=self.question.route.release.proto(),
            images=self.report.images,
        )


def _asked(question: Question) -> Attributes:
    """Return what a trace says of a question, in the words of the GenAI conventions and never in the user's."""
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "tandem",
        "gen_ai.request.model": question.route.release.name,
        "gen_ai.request.max_tokens": question.sampling.max_tokens,
        "gen_ai.request.temperature": question.sampling.temperature,
        "tandem.images": len(question.images),
    }


def _answered(finished: gateway_pb2.GatewayGenerateFinished) -> Attributes:
    return {
        "gen_ai.response.model": str(finished.release.language_tag),
        "gen_ai.response.finish_reasons": [
            sampling_pb2.FinishReason.Name(finished.finish_reason).removeprefix("FINISH_REASON_").lower()
        ],
        "gen_ai.usage.input_tokens": finished.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": finished.usage.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": finished.usage.cached_prompt_tokens,
        "gen_ai.response.time_to_first_chunk": finished.timings.first_token_ms / 1000,
    }


def _so_far(prefilled: language_pb2.Prefilled) -> language_pb2.GenerateFinished:
    """Return what is known of an ending that may never come, as a stop string ends the call before it."""
    return language_pb2.GenerateFinished(
        usage=sampling_pb2.Usage(cached_prompt_tokens=prefilled.cached_prompt_tokens),
        timings=language_pb2.GenerateTimings(queue_ms=prefilled.queue_ms, prefill_ms=prefilled.prefill_ms),
    )


async def _result(encoding: asyncio.Task[bytes]) -> bytes:
    """Return what an image became."""
    await asyncio.wait([encoding])
    if encoding.cancelled() or encoding.exception() is not None:
        raise _NoImageError
    return encoding.result()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a group of tasks: the others followed from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
