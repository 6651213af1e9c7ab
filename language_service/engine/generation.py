"""One request of our own engine, with its times."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from chassis.errors import Internal, TandemError
from language_service.engine.interface import Event, Finished, FinishReason, Prefilled, Timings, Tokens, Usage
from language_service.engine.runner import PlacedImage
from language_service.model import Grid, shift_after
from language_service.sampling import Choice, SamplingState
from language_service.scheduling import Sequence as ScheduledSequence


class Clock:
    """Records when things happen to one request."""

    def __init__(self) -> None:
        self._first_segment_s: float | None = None
        self._last_segment_s = 0.0
        self._first_prefill_s: float | None = None
        self._prefill_s = 0.0
        self._first_token_s: float | None = None
        self._last_token_s = 0.0

    def record_segment(self) -> None:
        """Record that a segment of the prompt arrived."""
        self._last_segment_s = time.perf_counter()
        if self._first_segment_s is None:
            self._first_segment_s = self._last_segment_s

    def record_prefill(self, started_s: float, seconds: float) -> None:
        """Record a step that computed a part of the prompt."""
        self._prefill_s += seconds
        if self._first_prefill_s is None:
            self._first_prefill_s = started_s

    def record_token(self) -> None:
        """Record that a step chose tokens."""
        self._last_token_s = time.perf_counter()
        if self._first_token_s is None:
            self._first_token_s = self._last_token_s

    def timings(self) -> Timings:
        """Return the times up to now, after the first token."""
        first_segment_s, first_token_s = self._first_segment_s or 0.0, self._first_token_s or 0.0
        return Timings(
            queue_ms=1000 * ((self._first_prefill_s or first_segment_s) - first_segment_s),
            prefill_ms=1000 * self._prefill_s,
            first_token_ms=1000 * (first_token_s - self._last_segment_s),
            decode_ms=1000 * (self._last_token_s - first_token_s),
        )


async def events_of(queue: asyncio.Queue[Event | TandemError]) -> AsyncIterator[Event]:
    """Yield the events of an answer up to its end.

    Raises:
        TandemError: the answer failed.
    """
    while True:
        event = await queue.get()
        if isinstance(event, TandemError):
            raise event
        yield event
        if isinstance(event, Finished):
            return


class PagedGeneration:
    """Implements `Generation`.

    The servicer uses the methods of `Generation` on the event loop. The engine uses everything else under its lock.
    """

    def __init__(
        self,
        *,
        state: SamplingState,
        sequence: ScheduledSequence,
        updating: Callable[["PagedGeneration"], AbstractContextManager[None]],
        cancel: Callable[["PagedGeneration"], None],
    ) -> None:
        """Make a request.

        Args:
            state: chooses its tokens.
            sequence: its tokens, as the scheduler sees them.
            updating: context manager of the engine. It takes the lock, and raises the error of a failed request.
            cancel: method of the engine.
        """
        self.state = state
        self.sequence = sequence
        if state.grammar is not None:
            sequence.forced = state.grammar.forced
        self.images: list[PlacedImage] = []
        self.clock = Clock()
        self.error: TandemError | None = None
        self._updating = updating
        self._cancel = cancel
        self._events: asyncio.Queue[Event | TandemError] = asyncio.Queue()

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add text to the prompt, see `Generation`."""
        with self._updating(self):
            self.clock.record_segment()
            self.sequence.add_text(token_ids)
            self.state.note_prompt(token_ids)

    def add_image(self, embeddings_NX: Tensor, visual_key: bytes, grid: Grid | None = None) -> None:
        """Add an image to the prompt, see `Generation`."""
        with self._updating(self):
            self.clock.record_segment()
            shift = shift_after(self.images[-1]) if self.images else 0
            self.images.append(PlacedImage(self.sequence.num_prompt, embeddings_NX, grid, shift))
            self.sequence.add_image(visual_key, len(embeddings_NX))

    def end_prompt(self, max_tokens: int) -> None:
        """Declare the prompt complete, see `Generation`."""
        with self._updating(self):
            self.sequence.max_tokens = max_tokens

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the events of the answer, see `Generation`."""
        return events_of(self._events)

    def cancel(self) -> None:
        """Free everything the request uses, see `Generation`."""
        self._cancel(self)

    def deliver(self, event: Event | TandemError) -> None:
        """Queue an event for the servicer, on the event loop."""
        self._events.put_nowait(event)

    def accept(self, choices: Sequence[Choice | None]) -> list[Event]:
        """Add the tokens that a step chose to the answer.

        Args:
            choices: none if the step could not choose, or if only the constraint has news.

        Returns:
            The last event is `Finished` if the answer has ended.

        Raises:
            Internal: reason 'NOT_FINITE', a choice is None.
            InvalidArgument: reason 'CONSTRAINT_FAILED', the constraint cannot be followed any further.
            Unavailable: reason 'GRAMMARS_FAILED', the constraint's process has ended.
        """
        finite = [choice for choice in choices if choice is not None]
        if len(finite) < len(choices):
            raise Internal("The model's output for this prompt is not finite.", reason="NOT_FINITE")
        grammar = self.state.grammar
        if grammar is not None and grammar.error is not None:
            raise grammar.error
        events: list[Event] = []
        if choices:
            self.clock.record_token()
            events = [self._prefilled()] if self.state.num_chosen == len(choices) else []
        if grammar is not None:
            self.sequence.forced = grammar.forced
        tokens = [choice for choice in finite if not self.state.is_end(choice.token_id)]
        for choice in tokens:
            self.sequence.add_answer(choice.token_id)
        if tokens:
            logprobs = [choice.logprobs for choice in tokens if choice.logprobs is not None]
            events.append(Tokens([choice.token_id for choice in tokens], logprobs))
        is_full = self.sequence.num_answer == self.sequence.max_tokens
        if self.state.has_ended or (is_full and (grammar is None or grammar.is_settled)):
            events.append(self._finished())
        return events

    def _prefilled(self) -> Prefilled:
        timings = self.clock.timings()
        return Prefilled(
            num_cached_prompt=self.sequence.num_cached_tokens, queue_ms=timings.queue_ms, prefill_ms=timings.prefill_ms
        )

    def _finished(self) -> Finished:
        usage = Usage(
            num_prompt=self.sequence.num_prompt,
            num_visual=sum(len(image.embeddings_NX) for image in self.images),
            num_cached_prompt=self.sequence.num_cached_tokens,
            num_answer=self.sequence.num_answer,
        )
        reason = FinishReason.STOP if self.state.has_ended else FinishReason.LENGTH
        return Finished(reason, usage, self.clock.timings())


Delivery = tuple[PagedGeneration, Event | TandemError]


def publish(loop: asyncio.AbstractEventLoop, events: Sequence[Delivery]) -> None:
    """Deliver events on the event loop, from any thread."""
    if events:
        loop.call_soon_threadsafe(_deliver, events)


def _deliver(events: Sequence[Delivery]) -> None:
    for generation, event in events:
        generation.deliver(event)
