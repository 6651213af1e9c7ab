"""Read the language service's answer, and stream it as text."""

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from chassis.errors import Internal, TandemError
from gateway.answer.question import Question
from gateway.answer.report import Report
from gateway.answer.signs import SignReader
from gateway.answer.text import AnswerText
from gateway.filters import FilterSet
from gateway.stages import LanguageCall
from tandem.v1 import gateway_pb2, language_pb2, sampling_pb2

Send = Callable[[gateway_pb2.GatewayGenerateResponse], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerReader:
    """Reads the answer of one language call."""

    question: Question
    filters: FilterSet
    report: Report
    send: Send  # passes a message on to the client, and waits while the client is slow

    async def read(self, call: LanguageCall, pins: AsyncExitStack) -> gateway_pb2.GatewayGenerateFinished:
        """Stream the visible text, and return the last message.

        Args:
            call: the language call. The caller cancels it afterwards.
            pins: keeps the visual tokens in the cache. Closed at the first token, when the prompt is not needed again.

        Raises:
            TandemError: the language call failed, before or within the answer.
        """
        release = self.question.route.release
        with self.filters.word_filter() as words:
            min_tokens = self.question.sampling.min_tokens
            text = AnswerText(release.vocabulary, self.question.stops, words, min_tokens=min_tokens)
            finished = language_pb2.GenerateFinished()
            signs = SignReader(self.question.script, self.question.digest)
            while text.ended_by is None:
                response = await self._next_message(call, text)
                if response.HasField("finished"):
                    finished = response.finished
                    break
                if response.HasField("prefilled"):
                    finished = _finished_at_prefill(response.prefilled)
                    continue
                await pins.aclose()
                logprobs = response.tokens.logprobs
                delta = text.push(response.tokens.token_ids, logprobs if self.question.wants_logprobs else ())
                # Tokens after a stop string in the same message do not count.
                self.report.mark_tokens(release.name, text.num_tokens - self.report.num_answer_tokens)
                signs.add(response.tokens.token_ids, delta.text if delta is not None else "", logprobs)
                await self._send_delta(delta)
            rest = text.finish()
            signs.add((), rest.text if rest is not None else "")
            await self._send_delta(rest)
        last = self._last_message(text, finished)
        self.report.signs = signs.finish(last.finish_reason)
        return last

    async def _next_message(self, call: LanguageCall, text: AnswerText) -> language_pb2.GenerateResponse:
        """Return the next message of the call.

        After an error, the pending text is sent before the error is raised.
        """
        try:
            response = await call.read()
            if response is None:
                raise Internal(
                    "The language service closed the stream before the end of the answer: send the request again.",
                    reason="LANGUAGE_FAILED",
                )
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

    def _last_message(
        self, text: AnswerText, finished: language_pb2.GenerateFinished
    ) -> gateway_pb2.GatewayGenerateFinished:
        """Return the client's last message.

        Args:
            text: the complete answer.
            finished: the language service's last message, or the numbers known so far.
        """
        usage = sampling_pb2.Usage(
            prompt_tokens=self.question.num_prompt_tokens,
            visual_tokens=self.question.num_visual_tokens,
            cached_prompt_tokens=finished.usage.cached_prompt_tokens,
            completion_tokens=text.num_tokens,
        )
        return gateway_pb2.GatewayGenerateFinished(
            finish_reason=text.ended_by or finished.finish_reason,
            usage=usage,
            timings=self.report.timings(finished.timings),
            release=self.question.route.release.proto(),
            images=self.report.images,
        )


def _finished_at_prefill(prefilled: language_pb2.Prefilled) -> language_pb2.GenerateFinished:
    """Return the usage and timings known after prefill.

    A stop string cancels the call before its real last message, so these numbers are needed early.
    """
    return language_pb2.GenerateFinished(
        usage=sampling_pb2.Usage(cached_prompt_tokens=prefilled.cached_prompt_tokens),
        timings=language_pb2.GenerateTimings(queue_ms=prefilled.queue_ms, prefill_ms=prefilled.prefill_ms),
    )
