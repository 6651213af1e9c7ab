"""Serve `tandem.v1.LanguageService`: translate between messages and engines."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import ExitStack

from chassis.errors import DeadlineExceeded, InvalidArgument
from chassis.tracing import span
from hosting import ModelCalls, ModelHost
from language_service.engine import Event, FinishReason, Generation, Prefilled, Tokens
from language_service.loader import HostedLanguage
from language_service.prompt import PromptReader, check_start
from language_service.sampling import Logprobs, read_options
from tandem.v1 import language_pb2, language_pb2_grpc, sampling_pb2

SERVICE_NAME = language_pb2.DESCRIPTOR.services_by_name["LanguageService"].full_name

_FINISH_REASONS = {
    FinishReason.STOP: sampling_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: sampling_pb2.FINISH_REASON_LENGTH,
}

Requests = AsyncIterator[language_pb2.GenerateRequest]


class LanguageServicer(ModelCalls[HostedLanguage], language_pb2_grpc.LanguageServiceServicer):
    """Answers `Generate` and the model calls.

    The server's interceptor maps errors to gRPC statuses.
    """

    def __init__(self, models: ModelHost[HostedLanguage], *, segment_timeout_s: float) -> None:
        self.models = models
        self._segment_timeout_s = segment_timeout_s

    async def Generate(  # noqa: N802
        self, request_iterator: AsyncIterable[language_pb2.GenerateRequest], context: object
    ) -> AsyncIterator[language_pb2.GenerateResponse]:
        """Read one prompt to its end, then stream the answer.

        No token exists before the prompt ends, so reading and writing never overlap.
        """
        requests = aiter(request_iterator)
        start, text = await self._read_first(requests)
        facts = {"gen_ai.operation.name": "text_completion", "gen_ai.request.model": start.tag}
        with span(f"text_completion {start.tag}", attributes=facts), self.models.lease(start.tag) as model:
            options = read_options(start.sampling, vocab_size=model.limits.vocab_size)
            with ExitStack() as stack:
                # Closed also after a cancellation or an exceeded deadline, which interrupts this handler at any await.
                grammar = None
                if options.constraint is not None:
                    grammar = await model.grammars.compile(options.constraint)
                    stack.callback(grammar.close)
                generation = model.engine.open(
                    options,
                    salt=start.cache_salt,
                    priority=start.priority,
                    is_background=start.is_background,
                    grammar=grammar,
                )
                stack.callback(generation.cancel)
                reader = PromptReader(model.limits, options)
                if text is None:
                    await self._read_prompt(requests, reader, generation)
                else:
                    generation.add_text(reader.text(text))
                generation.end_prompt(reader.end())
                async for event in generation:
                    yield _response(event)

    async def _read_first(
        self, requests: Requests
    ) -> tuple[language_pb2.GenerateStart, language_pb2.TextSegment | None]:
        """Return the options, and the text of a whole prompt."""
        first = await self._next(requests)
        kind = first.WhichOneof("message") if first is not None else None
        if first is None or kind not in ("start", "whole"):
            raise InvalidArgument("The first message must be 'start' or 'whole'.", reason="BAD_STREAM", field="start")
        start = first.whole.start if kind == "whole" else first.start
        check_start(start)
        return start, first.whole.text if kind == "whole" else None

    async def _read_prompt(self, requests: Requests, reader: PromptReader, generation: Generation) -> None:
        """Pass each segment to the engine as it arrives.

        So prefill starts while a later image is encoded.
        """
        while (request := await self._next(requests)) is not None:
            image = None
            match request.WhichOneof("message"):
                case "text":
                    generation.add_text(reader.text(request.text))
                case "image":
                    image = reader.image(request.image)
                case "image_chunk":
                    image = reader.image_chunk(request.image_chunk)
                case _:
                    message = "Every message after 'start' must be 'text', 'image' or 'image_chunk'."
                    raise InvalidArgument(message, reason="BAD_STREAM", field="message")
            if image is not None:
                generation.add_image(*image)

    async def _next(self, requests: Requests) -> language_pb2.GenerateRequest | None:
        """Return the next message, or None at the end."""
        try:
            async with asyncio.timeout(self._segment_timeout_s):
                return await anext(requests, None)
        except TimeoutError:
            message = f"The next segment of the prompt did not arrive within {self._segment_timeout_s:g} s."
            raise DeadlineExceeded(message, reason="PROMPT_STALLED") from None


def _response(event: Event) -> language_pb2.GenerateResponse:
    if isinstance(event, Prefilled):
        return language_pb2.GenerateResponse(
            prefilled=language_pb2.Prefilled(
                cached_prompt_tokens=event.num_cached_prompt, queue_ms=event.queue_ms, prefill_ms=event.prefill_ms
            )
        )
    if isinstance(event, Tokens):
        logprobs = [_logprobs(token, one) for token, one in zip(event.token_ids, event.logprobs, strict=False)]
        return language_pb2.GenerateResponse(
            tokens=language_pb2.TokenChunk(token_ids=event.token_ids, logprobs=logprobs)
        )
    usage, timings = event.usage, event.timings
    return language_pb2.GenerateResponse(
        finished=language_pb2.GenerateFinished(
            finish_reason=_FINISH_REASONS[event.reason],
            usage=sampling_pb2.Usage(
                prompt_tokens=usage.num_prompt,
                visual_tokens=usage.num_visual,
                cached_prompt_tokens=usage.num_cached_prompt,
                completion_tokens=usage.num_answer,
            ),
            timings=language_pb2.GenerateTimings(
                queue_ms=timings.queue_ms,
                prefill_ms=timings.prefill_ms,
                first_token_ms=timings.first_token_ms,
                decode_ms=timings.decode_ms,
            ),
        )
    )


def _logprobs(token: int, logprobs: Logprobs) -> sampling_pb2.PositionLogprobs:
    return sampling_pb2.PositionLogprobs(
        chosen=sampling_pb2.TokenLogprob(token_id=token, logprob=logprobs.chosen),
        top=[sampling_pb2.TokenLogprob(token_id=one, logprob=logprob) for one, logprob in logprobs.top],
    )
