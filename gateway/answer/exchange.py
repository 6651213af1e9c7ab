"""Exchange one prompt for one answer with the stages."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

from chassis.deadline import Deadline
from chassis.errors import Internal, TandemError
from chassis.tensors import split_data
from chassis.tracing import span
from gateway.admission import Tenant
from gateway.answer import metrics
from gateway.answer.answer_reader import AnswerReader, Send
from gateway.answer.question import Question, QuestionBuilder
from gateway.answer.report import Report
from gateway.answer.span_attributes import request_attributes, response_attributes
from gateway.filters import FilterSet
from gateway.images import UNCOUNTED, Held, RequestImage, TokenShape, VisualTokenSource
from gateway.stages import CallEndedError, LanguageCall, LanguageStub, Release, Replica, with_failover
from processing import TextSegment
from tandem.v1 import gateway_pb2, language_pb2, tensor_pb2

LanguageReplica = Replica[LanguageStub]

# One task per image. Its result is a serialized `VisualTokens`.
Encodings = list[asyncio.Task[bytes]]


class _EncodingFailedError(Exception):
    """An image was not encoded. Its task raises why."""


class ExchangeBuilder:
    """Builds exchanges, for real requests and for mirrored ones."""

    def __init__(self, questions: QuestionBuilder, visual_tokens: VisualTokenSource, filters: FilterSet) -> None:
        self._questions = questions
        self._visual_tokens = visual_tokens
        self._filters = filters

    async def build(
        self,
        request: gateway_pb2.GatewayGenerateRequest,
        release: Release,
        tenant: Tenant,
        *,
        deadline: Deadline,
        report: Report,
        priority: int = 0,
        held: Held = UNCOUNTED,
    ) -> "Exchange":
        """Check a request and build its prompt.

        No stage is called yet.

        Args:
            request: the client's request.
            release: the release that answers.
            tenant: owner of the request.
            deadline: deadline of the whole request.
            report: receives timings and counts while the exchange runs.
            priority: scheduling priority in the language service. Larger runs first.
            held: counts the bytes of images given by digest, until they are encoded.

        Raises:
            TandemError: see `QuestionBuilder.build`.
        """
        return Exchange(
            question=await self._questions.build(request, release, tenant, priority=priority, held=held),
            deadline=deadline,
            visual_tokens=self._visual_tokens,
            filters=self._filters,
            report=report,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """One prompt to the stages, and its answer back."""

    question: Question
    deadline: Deadline
    visual_tokens: VisualTokenSource
    filters: FilterSet
    report: Report

    async def run(self, send: Send) -> gateway_pb2.GatewayGenerateFinished:
        """Encode images, send the prompt and read the answer.

        All three run concurrently, and the first failure ends them. A language replica that fails before its first
        token is replaced by another, which gets the whole prompt again. Encoded images are reused. Every call and cache
        pin is released on return.

        Args:
            send: passes a message on to the client, and waits while the client is slow.

        Returns:
            The last message of the answer, which is not sent yet.

        Raises:
            TandemError: the answer failed, or broke off.
        """
        name = self.question.route.release.name
        with span(f"chat {name}", "client", request_attributes(self.question)) as chat:
            try:
                async with AsyncExitStack() as pins, asyncio.TaskGroup() as tasks:
                    encodings = self._start_encoding(tasks, pins)
                    finished = await with_failover(
                        self.question.route.language,
                        lambda replica: self._run_on(replica, encodings, pins, send),
                        may_retry=lambda: not self.report.num_answer_tokens,
                    )
            except BaseExceptionGroup as group:
                error = _root_error(group)
                chat.fail(error.reason if isinstance(error, TandemError) else type(error).__name__)
                raise error from None
            chat.set_attributes(response_attributes(finished))
        return finished

    def _start_encoding(self, tasks: asyncio.TaskGroup, pins: AsyncExitStack) -> Encodings:
        images = self.question.images
        self.report.images.extend(gateway_pb2.ImageReport(sha256=image.sha256) for image in images)
        return [
            tasks.create_task(self._encode(image, shape, report, pins))
            for image, shape, report in zip(images, self.question.shapes, self.report.images, strict=True)
        ]

    async def _encode(
        self, image: RequestImage, shape: TokenShape, report: gateway_pb2.ImageReport, pins: AsyncExitStack
    ) -> bytes:
        """Return an image's serialized visual tokens, and fill its report."""
        replica = self.question.route.vision
        assert replica is not None, "a question with images is routed with a vision replica"
        release = self.question.route.release.name
        with metrics.stage_call(release, "vision"), span("find visual tokens") as step:
            found = await self.visual_tokens.get(
                image, shape, replica, cache_salt=self.question.cache_salt, pins=pins, deadline=self.deadline
            )
            image.drop()
            step.set_attributes({"tandem.cache_level": gateway_pb2.CacheLevel.Name(found.level)})
        self.filters.check_image(found.entry.data, image.field)
        report.cache_level = found.level
        if found.similar is not None:
            report.similarity = found.similar.similarity
            if not self.question.shares_caches:  # else it can be the image of another tenant
                report.similar_sha256 = found.similar.image_sha256
        report.num_visual_tokens = shape.num_visual_tokens
        if shape.grid is not None:
            report.grid.CopyFrom(tensor_pb2.VisualGrid(rows=shape.grid[0], columns=shape.grid[1]))
        report.ready_ms = self.report.ms_since_start()
        metrics.count_image(release, report)
        return found.entry.data

    async def _run_on(
        self, replica: LanguageReplica, encodings: Encodings, pins: AsyncExitStack, send: Send
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Send the prompt to one replica, and read its answer."""
        start = self.question.start(
            measures_logprob=self.report.measures_logprob, is_background=self.report.is_background
        )
        text = self.question.whole_text if replica.info.language.takes_whole_prompts else None
        whole = _whole(start, text) if text is not None else None
        call = LanguageCall(replica.stub, self.deadline, whole)
        reader = AnswerReader(question=self.question, filters=self.filters, report=self.report, send=send)
        try:
            if whole is not None:
                return await self._read(reader, call, pins)
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send_prompt(call, start, encodings))
                finished = await self._read(reader, call, pins)
                sending.cancel()
        except BaseExceptionGroup as group:
            raise _root_error(group) from None
        finally:
            call.cancel()
        return finished

    async def _read(
        self, reader: AnswerReader, call: LanguageCall, pins: AsyncExitStack
    ) -> gateway_pb2.GatewayGenerateFinished:
        with metrics.stage_call(self.question.route.release.name, "language"):
            return await reader.read(call, pins)

    async def _send_prompt(self, call: LanguageCall, start: language_pb2.GenerateStart, encodings: Encodings) -> None:
        """Send the segments in order.

        Text is sent at once, an image when it is encoded.
        """
        # The reader raises the reason of an ended call. The encoding task raises the reason of a failed image.
        with suppress(CallEndedError, _EncodingFailedError):
            await call.write(language_pb2.GenerateRequest(start=start))
            for segment in self.question.segments:
                if isinstance(segment, TextSegment):
                    await call.write(language_pb2.GenerateRequest(text=_text(segment)))
                    continue
                for message in self._image_messages(await _encoded(encodings[segment.index])):
                    await call.write(message)
            await call.end_prompt()

    def _image_messages(self, serialized: bytes) -> Iterator[language_pb2.GenerateRequest]:
        """Yield the messages of one image: segment, then chunks."""
        tokens = tensor_pb2.VisualTokens.FromString(serialized)
        # Routing and the visual key already rule this out. Check again: crossed encoders give wrong answers silently.
        if tokens.vision_digest != self.question.route.language.info.language.vision_digest:
            metrics.CROSSED_VISUAL_TOKENS.inc()
            raise Internal(
                "The visual tokens come from another vision model than the language model was trained with: "
                "report this to the operator.",
                reason="ENCODERS_CROSSED",
            )
        first, *rest = split_data(tokens.embeddings.data)
        tokens.embeddings.data = first
        yield language_pb2.GenerateRequest(image=language_pb2.ImageSegment(visual_tokens=tokens))
        for data in rest:
            yield language_pb2.GenerateRequest(image_chunk=language_pb2.ImageChunk(data=data))


def _text(segment: TextSegment) -> language_pb2.TextSegment:
    return language_pb2.TextSegment(token_ids=segment.token_ids)


def _whole(start: language_pb2.GenerateStart, text: TextSegment) -> language_pb2.GenerateRequest:
    return language_pb2.GenerateRequest(whole=language_pb2.WholePrompt(start=start, text=_text(text)))


async def _encoded(encoding: asyncio.Task[bytes]) -> bytes:
    """Wait for an encoding task and return its result.

    Raises:
        _EncodingFailedError: the task failed or was cancelled.
    """
    await asyncio.wait([encoding])
    if encoding.cancelled() or encoding.exception() is not None:
        raise _EncodingFailedError
    return encoding.result()


def _root_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the group's first error, which caused the others."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
