"""One request of the paged engine: what its caller feeds and reads, and what the engine keeps for it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager

from torch import Tensor

from chassis.errors import TandemError
from language_service.engine.interface import Event, Finished, FinishReason, Prefilled, Timings, Usage
from language_service.engine.runner import PlacedImage
from language_service.sampling import SamplingState
from language_service.scheduling import Sequence as ScheduledSequence


class Clock:
    """Notes when things happen to one request."""

    def __init__(self) -> None:
        self._first_segment_s: float | None = None
        self._last_segment_s = 0.0
        self._first_prefill_s: float | None = None
        self._prefill_s = 0.0
        self._first_token_s: float | None = None
        self._last_token_s = 0.0

    def segment(self) -> None:
        """Note that a segment of the prompt came."""
        self._last_segment_s = time.perf_counter()
        if self._first_segment_s is None:
            self._first_segment_s = self._last_segment_s

    def prefill(self, started_s: float, seconds: float) -> None:
        """Note a step that held part of the prompt."""
        self._prefill_s += seconds
        if self._first_prefill_s is None:
            self._first_prefill_s = started_s

    def token(self) -> None:
        """Note that a token was chosen."""
        self._last_token_s = time.perf_counter()
        if self._first_token_s is None:
            self._first_token_s = self._last_token_s

    def timings(self) -> Timings:
        """Return where the time went, once a token was chosen."""
        first_segment_s, first_token_s = self._first_segment_s or 0.0, self._first_token_s or 0.0
        return Timings(
            queue_ms=1000 * ((self._first_prefill_s or first_segment_s) - first_segment_s),
            prefill_ms=1000 * self._prefill_s,
            first_token_ms=1000 * (first_token_s - self._last_segment_s),
            decode_ms=1000 * (self._last_token_s - first_token_s),
        )


class PagedGeneration:
    """A request of the paged engine. Its caller uses it on the event loop; the engine under its lock."""

    def __init__(
        self,
        *,
        state: SamplingState,
        sequence: ScheduledSequence,
        changing: Callable[["PagedGeneration"], AbstractContextManager[None]],
        cancel: Callable[["PagedGeneration"], None],
    ) -> None:
        """Make a request; `changing` gives the engine's lock and raises what ended the request early."""
        self.state = state
        self.sequence = sequence
        self.images: list[PlacedImage] = []
        self.clock = Clock()
        self.error: TandemError | None = None
        self._changing = changing
        self._cancel = cancel
        self._events: asyncio.Queue[Event | TandemError] = asyncio.Queue()

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add text to the prompt; see `Generation`."""
        with self._changing(self):
            self.clock.segment()
            self.sequence.add_text(token_ids)
            self.state.note_prompt(token_ids)

    def add_image(self, embeddings_ND: Tensor, visual_key: bytes) -> None:
        """Add an image to the prompt; see `Generation`."""
        with self._changing(self):
            self.clock.segment()
            self.images.append(PlacedImage(self.sequence.num_prompt, embeddings_ND, visual_key))
            self.sequence.add_image(visual_key, len(embeddings_ND))

    def end_prompt(self, max_tokens: int) -> None:
        """Declare the prompt complete; see `Generation`."""
        with self._changing(self):
            self.sequence.max_tokens = max_tokens

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Yield the answer; see `Generation`."""
        while True:
            event = await self._events.get()
            if isinstance(event, TandemError):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    def cancel(self) -> None:
        """Free all the request holds; see `Generation`."""
        self._cancel(self)

    def deliver(self, event: Event | TandemError) -> None:
        """Hand an event to who reads the answer. Called on the event loop."""
        self._events.put_nowait(event)

    def prefilled(self) -> Prefilled:
        """Return the event of a prompt that is computed."""
        timings = self.clock.timings()
        return Prefilled(
            num_cached_prompt=self.sequence.num_found, queue_ms=timings.queue_ms, prefill_ms=timings.prefill_ms
        )

    def finished(self, reason: FinishReason) -> Finished:
        """Return the last event, the request being what it is now."""
        usage = Usage(
            num_prompt=self.sequence.num_prompt,
            num_visual=sum(len(image.embeddings_ND) for image in self.images),
            num_cached_prompt=self.sequence.num_found,
            num_answer=self.sequence.num_answer,
        )
        return Finished(reason, usage, self.clock.timings())
