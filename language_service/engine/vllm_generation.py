"""One request to vLLM, with its times."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from torch import Tensor

from chassis.errors import Internal, TandemError
from language_service.engine.generation import Clock, events_of
from language_service.engine.interface import Event, Finished, FinishReason, Prefilled, Tokens, Usage
from language_service.engine.vllm_client import Output
from language_service.engine.vllm_prompt import VllmPrompt
from language_service.engine.vllm_sampling import read_logprobs
from language_service.model import Grid
from language_service.sampling import SamplingOptions


class VllmGeneration:
    """Implements `Generation`.

    vLLM gets the prompt when it is complete, so nothing is computed before. A task of its own reads the answer.
    """

    def __init__(
        self,
        prompt: VllmPrompt,
        options: SamplingOptions,
        *,
        ends: frozenset[int],
        run: Callable[["VllmGeneration", int], Coroutine[Any, Any, None]],
        forget: Callable[["VllmGeneration"], None],
    ) -> None:
        """Make a request.

        Args:
            prompt: an empty one.
            options: how tokens are chosen.
            ends: token ids that end the answer and are not sent.
            run: sends the prompt and reads the answer. Gets the request and the most tokens of its answer.
            forget: tells the engine that the request has ended. May be called more than once.
        """
        self.prompt = prompt
        self.options = options
        self.ends = ends
        self.error: TandemError | None = None
        self._run = run
        self._forget = forget
        self._clock = Clock()
        self._events: asyncio.Queue[Event | TandemError] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        self._num_answer = 0
        self._num_cached = 0
        self._has_begun = False

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add text to the prompt, see `Generation`."""
        self._check()
        self._clock.record_segment()
        self.prompt.add_text(token_ids)

    def add_image(self, embeddings_NX: Tensor, visual_key: bytes, grid: Grid | None = None) -> None:
        """Add an image to the prompt, see `Generation`."""
        self._check()
        self._clock.record_segment()
        self.prompt.add_image(embeddings_NX, visual_key, grid)

    def end_prompt(self, max_tokens: int) -> None:
        """Send the prompt to vLLM, see `Generation`."""
        self._check()
        self._task = asyncio.create_task(self._run(self, max_tokens))

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events of the answer, see `Generation`."""
        return events_of(self._events)

    def cancel(self) -> None:
        """End the request, see `Generation`."""
        self._forget(self)
        if self._task is not None:
            self._task.cancel()

    def fail(self, error: TandemError) -> None:
        """Fail the request, unless it has ended already."""
        if self.error is None:
            self.error = error
            self._events.put_nowait(error)
        self._forget(self)

    def accept(self, output: Output) -> None:
        """Add the next part of the answer.

        Raises:
            Internal: reason 'NOT_FINITE' or 'STEP_FAILED'.
        """
        if not output.is_finite:
            raise Internal("The model's output for this prompt is not finite.", reason="NOT_FINITE")
        if output.finish_reason not in (None, "stop", "length"):
            raise Internal("The model failed in this step.", reason="STEP_FAILED")
        if not self._has_begun:
            self._begin(output)
        if output.token_ids:
            self._clock.record_token()
        # vLLM sends the token that ends an answer, too.
        is_end = output.finish_reason == "stop" and output.token_ids[-1:] and output.token_ids[-1] in self.ends
        token_ids = output.token_ids[:-1] if is_end else output.token_ids
        if token_ids:
            self._num_answer += len(token_ids)
            self._events.put_nowait(Tokens(token_ids, self._logprobs(token_ids, output)))
        if output.finish_reason is not None:
            reason = FinishReason.STOP if output.finish_reason == "stop" else FinishReason.LENGTH
            self._events.put_nowait(Finished(reason, self.usage(), self._clock.timings()))

    def usage(self) -> Usage:
        """Return the tokens up to now."""
        return Usage(
            num_prompt=self.prompt.num_tokens,
            num_visual=self.prompt.num_visual,
            num_cached_prompt=self._num_cached,
            num_answer=self._num_answer,
        )

    def _begin(self, output: Output) -> None:
        self._has_begun = True
        self._num_cached = output.num_cached_prompt
        self._clock.record_prefill(time.perf_counter() - output.prefill_s, output.prefill_s)
        timings = self._clock.timings()
        self._events.put_nowait(
            Prefilled(num_cached_prompt=self._num_cached, queue_ms=timings.queue_ms, prefill_ms=timings.prefill_ms)
        )

    def _logprobs(self, token_ids: Sequence[int], output: Output) -> list[Any]:
        count = self.options.num_logprobs
        if count is None:
            return []
        return [read_logprobs(token, ranked, count) for token, ranked in zip(token_ids, output.logprobs, strict=False)]

    def _check(self) -> None:
        if self.error is not None:
            raise self.error
