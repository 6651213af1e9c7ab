"""One question and its answer: the prompt goes out while pictures are encoded, and tokens come back as text."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from chassis.errors import Internal
from gateway import metrics
from gateway.answer import AnswerText
from gateway.deadline import Deadline
from gateway.encoding import VisualTokenSource
from gateway.images import Picture
from gateway.language_call import CallEndedError, LanguageCall
from gateway.prompt import Segment, TextSegment
from gateway.question import Question
from gateway.report import Report
from tandem.v1 import gateway_pb2, language_pb2, sampling_pb2, tensor_pb2

Send = Callable[[gateway_pb2.GatewayGenerateResponse], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Steps 4 to 8 of one request; whatever it holds is given back when `run` ends, however that is."""

    question: Question
    deadline: Deadline
    visual_tokens: VisualTokenSource
    report: Report
    send: Send  # takes each message for the client; waits while the client is slow

    async def run(self) -> gateway_pb2.GatewayGenerateFinished:
        """Feed the prompt and read the answer at the same time; whichever fails first ends both.

        Raises:
            TandemError: why there is no answer, or no more of it.
        """
        call = LanguageCall(self.question.route.language.stub, self.deadline)
        try:
            async with asyncio.TaskGroup() as tasks:
                feeding = tasks.create_task(self._feed(call))
                with metrics.stage_call(self.question.route.release.name, "language"):
                    finished = await self._read(call)
                feeding.cancel()
        except BaseExceptionGroup as group:
            raise _first(group) from None
        finally:
            call.cancel()
        return finished

    async def _feed(self, call: LanguageCall) -> None:
        """Write the prompt in its order: text as soon as its turn comes, a picture once it is encoded."""
        pictures = self.question.pictures
        self.report.images.extend(gateway_pb2.ImageReport(sha256=picture.sha256) for picture in pictures)
        async with AsyncExitStack() as pins, asyncio.TaskGroup() as tasks:
            encodings = [
                tasks.create_task(self._encode(picture, image, pins))
                for picture, image in zip(pictures, self.report.images, strict=True)
            ]
            try:
                await call.write(self.question.start())
                for segment in self.question.segments:
                    await call.write(await self._message(segment, encodings))
                await call.end_prompt()
            except CallEndedError:  # whoever reads learns why
                for encoding in encodings:
                    encoding.cancel()

    async def _encode(self, picture: Picture, image: gateway_pb2.ImageReport, pins: AsyncExitStack) -> bytes:
        """Return the serialized visual tokens of one picture and fill in what is reported of it."""
        replica = self.question.route.vision
        assert replica is not None, "a question with pictures is routed with a vision replica"
        release = self.question.route.release.name
        with metrics.stage_call(release, "vision"):
            found = await visual_tokens(
                picture,
                replica,
                cache_salt=self.question.cache_salt,
                cache=self.cache,
                pins=pins,
                deadline=self.deadline,
            )
        image.cache_level = gateway_pb2.CACHE_LEVEL_GATEWAY if found.was_cached else gateway_pb2.CACHE_LEVEL_MISS
        image.num_visual_tokens = replica.info.vision.num_visual_tokens
        image.ready_ms = self.report.ms_since_start()
        metrics.count_picture(release, image)
        return found.entry.data

    async def _message(self, segment: Segment, encodings: list[asyncio.Task[bytes]]) -> language_pb2.GenerateRequest:
        """Return a segment as it is sent, a picture once its visual tokens are at hand."""
        if isinstance(segment, TextSegment):
            return language_pb2.GenerateRequest(text=language_pb2.TextSegment(token_ids=segment.token_ids))
        tokens = tensor_pb2.VisualTokens.FromString(await encodings[segment.index])
        if tokens.vision_digest != self.question.route.language.info.language.vision_digest:
            metrics.CROSSED_VISUAL_TOKENS.inc()  # route and cache see to it that this cannot happen
            raise Internal("Visual tokens came from another encoder than the decoder's.", reason="ENCODERS_CROSSED")
        return language_pb2.GenerateRequest(image=language_pb2.ImageSegment(visual_tokens=tokens))

    async def _read(self, call: LanguageCall) -> gateway_pb2.GatewayGenerateFinished:
        """Pass text on as it becomes visible until the answer ends or a stop string is hit."""
        release = self.question.route.release
        text = AnswerText(release.vocabulary, self.question.stops)
        ending = language_pb2.GenerateFinished()
        while not text.stopped:
            response = await call.read()
            if response is None:
                raise Internal("The language service ended an answer without a word.", reason="LANGUAGE_FAILED")
            if response.HasField("finished"):
                ending = response.finished
                break
            if response.HasField("prefilled"):
                ending = _so_far(response.prefilled)
                continue
            self.report.mark_tokens(release.name, len(response.tokens.token_ids))
            await self._send_delta(text.push(response.tokens.token_ids, response.tokens.logprobs))
        await self._send_delta(text.finish())
        return self._finished(text, ending)

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
            finish_reason=sampling_pb2.FINISH_REASON_STOP if text.stopped else ending.finish_reason,
            usage=usage,
            timings=self.report.timings(ending.timings),
            release=self.question.route.release.proto(),
            images=self.report.images,
        )


def _so_far(prefilled: language_pb2.Prefilled) -> language_pb2.GenerateFinished:
    """Return what is known of an ending that may never come, as a stop string ends the call before it."""
    return language_pb2.GenerateFinished(
        usage=sampling_pb2.Usage(cached_prompt_tokens=prefilled.cached_prompt_tokens),
        timings=language_pb2.GenerateTimings(queue_ms=prefilled.queue_ms, prefill_ms=prefilled.prefill_ms),
    )


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error that ended a group of tasks: the others followed from it."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
