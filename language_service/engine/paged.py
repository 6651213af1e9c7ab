"""Our own engine: a thread steps a continuous batch through the decoder and its paged cache.

The event loop changes sequences and the thread schedules and publishes them under one lock, which is never held while
the decoder runs. A chunk in flight is a copy, so a request may end under it: its result is then dropped, and its blocks
reach nobody else before the next step begins.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from chassis.errors import Internal, InvalidArgument, ResourceExhausted, TandemError, Unavailable
from language_service.cache import BlockPool, PrefixNames, root_name
from language_service.engine.generation import PagedGeneration
from language_service.engine.interface import EngineStats, Event, FinishReason, Tokens
from language_service.engine.metrics import EngineMetrics
from language_service.engine.runner import Piece, Runner
from language_service.sampling import Choice, Grammar, SamplingOptions, SamplingState, choose_with_drafts
from language_service.scheduling import Batch, Chunk, PromptLookup, Scheduler, SchedulerConfig
from language_service.scheduling import Sequence as ScheduledSequence

_log = structlog.get_logger()

_CHECK_EVERY_S = 10.0

Delivery = tuple[PagedGeneration, Event | TandemError]


class PagedEngine:
    """Implements `Engine`. Made, used and closed on one event loop."""

    def __init__(
        self, runner: Runner, config: SchedulerConfig, *, tag: str, model_digest: bytes, turn: threading.Lock
    ) -> None:
        """Start the engine's thread.

        Args:
            runner: decoder and cache, used by the engine's thread alone from here on.
            config: limits of the scheduler; its block size is the cache's.
            tag: the model's tag, for metrics and logs.
            model_digest: of the language half, 32 bytes; prompts to another model share nothing.
            turn: held during a forward pass; the engines of a process share it, and so the device, step by step.
        """
        self._runner = runner
        self._turn = turn
        self._model = runner.decoder.config
        self._tag = tag
        self._model_digest = model_digest
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._scheduler = self._make_scheduler()
        self._generations: dict[ScheduledSequence, PagedGeneration] = {}
        self._changed = threading.Condition()  # the lock, and the thread's bell
        self._closed = False
        self._checked_s = 0.0  # when the books were last gone through
        self._metrics = EngineMetrics(tag, self.stats)
        self._thread = threading.Thread(target=self._run, name=f"engine-{tag}", daemon=True)
        self._thread.start()

    @property
    def context_length(self) -> int:
        """Most tokens of one request: the model's, or what the cache can hold."""
        return min(self._model.context_length, self._runner.cache.config.num_tokens)

    def open(
        self, options: SamplingOptions, *, salt: bytes, priority: int, grammar: Grammar | None = None
    ) -> PagedGeneration:
        """Start a request; see `Engine`."""
        state = SamplingState(options, eos_token_ids=self._model.eos_token_ids, grammar=grammar)
        names = None
        if self._config.reuse_prefixes:
            root = root_name(model_digest=self._model_digest, salt=salt)
            names = PrefixNames(root, block_size=self._config.block_size)
        lookup = PromptLookup(self._config.max_drafts) if self._config.max_drafts else None
        sequence = ScheduledSequence(priority=priority, names=names, lookup=lookup)
        generation = PagedGeneration(state=state, sequence=sequence, changing=self._changing, cancel=self._cancel)
        with self._changed:
            if self._closed:
                raise _closed()
            if not self._scheduler.has_room:
                raise ResourceExhausted(
                    f"{self._scheduler.num_waiting} requests are waiting already.", reason="QUEUE_FULL", retry_after_s=1
                )
            self._generations[generation.sequence] = generation
            self._scheduler.add(generation.sequence)
        return generation

    def stats(self) -> EngineStats:
        """Return what the engine holds."""
        with self._changed:
            return EngineStats(
                num_running=self._scheduler.num_running,
                num_waiting=self._scheduler.num_waiting,
                num_used_blocks=self._scheduler.pool.num_used,
                num_kept_blocks=self._scheduler.pool.num_kept,
                num_blocks=self._scheduler.pool.num_blocks,
            )

    def check(self) -> None:
        """Raise AssertionError unless every block is free, kept or held by a sequence that runs."""
        with self._changed:
            self._scheduler.check()

    async def close(self) -> None:
        """End what still runs with Unavailable, and stop the thread after the step it is in."""
        with self._changed:
            self._closed = True
            for generation in list(self._generations.values()):
                self._end(generation)
                generation.error = _closed()
                generation.deliver(generation.error)
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._metrics.close()

    @contextmanager
    def _changing(self, generation: PagedGeneration) -> Iterator[None]:
        with self._changed:
            if generation.error is not None:
                raise generation.error
            yield
            self._changed.notify()

    def _cancel(self, generation: PagedGeneration) -> None:
        with self._changed:
            if generation.sequence in self._generations:
                self._end(generation)
                self._changed.notify()  # what it held may be what another waits for

    def _end(self, generation: PagedGeneration, *, keep: bool = True) -> None:
        self._scheduler.remove(generation.sequence, keep=keep)
        del self._generations[generation.sequence]

    def _make_scheduler(self) -> Scheduler:
        return Scheduler(self._config, BlockPool(self._runner.cache.config.num_blocks))

    def _run(self) -> None:
        """Step until closed; the thread's whole life."""
        while True:
            try:
                work = self._next_work()
                if work is None:
                    return
                self._step(*work)
            except Exception:
                _log.exception("engine failed", tag=self._tag)
                self._start_over()

    def _start_over(self) -> None:
        """Fail all requests and go on with an empty cache.

        Called after an error outside a forward pass: what the books say of blocks and sequences cannot be trusted then.
        """
        error = Internal("The engine failed and has started over.", reason="ENGINE_FAILED")
        self._metrics.failed_step()
        with self._changed:
            generations = list(self._generations.values())
            self._generations.clear()
            self._scheduler = self._make_scheduler()
            for generation in generations:
                generation.error = error
        self._publish([(generation, error) for generation in generations])

    def _next_work(self) -> tuple[Batch, list[PagedGeneration]] | None:
        """Wait for something to compute; None once the engine is closed."""
        with self._changed:
            while not self._closed:
                batch = self._scheduler.next_batch()
                if batch is not None:
                    return batch, [self._generations[chunk.sequence] for chunk in batch.chunks]
                if not self._generations:
                    self._check_sometimes()
                self._changed.wait(_CHECK_EVERY_S)
            return None

    def _check_sometimes(self) -> None:
        """Go through the books while nobody waits; what is wrong in them ends in starting over."""
        if time.monotonic() - self._checked_s >= _CHECK_EVERY_S:
            self._checked_s = time.monotonic()
            self._scheduler.check()

    def _step(self, batch: Batch, generations: Sequence[PagedGeneration]) -> None:
        events: list[Delivery] = []
        try:
            with self._turn:
                started_s = time.perf_counter()
                chosen = self._compute(batch, generations)
                seconds = time.perf_counter() - started_s
        except Exception:
            # Whatever it was, the other sequences did not take part in it; those that did cannot go on.
            _log.exception("step failed", tag=self._tag, num_sequences=len(generations))
            self._metrics.failed_step()
            with self._changed:
                for generation in generations:
                    events += self._fail(generation, Internal("The model failed in this step.", reason="STEP_FAILED"))
            self._publish(events)
            return
        self._metrics.step(batch, seconds, num_right=sum(len(one) - 1 for one in chosen))
        try:
            self._note(batch, generations, chosen, (started_s, seconds), events)
        finally:
            self._publish(events)  # also where the books failed halfway: who ended before that is answered

    def _note(
        self,
        batch: Batch,
        generations: Sequence[PagedGeneration],
        chosen: Sequence[Sequence[Choice | None]],
        times_s: tuple[float, float],
        events: list[Delivery],
    ) -> None:
        """Enter into the books what a step computed; add what the readers get to see to `events`."""
        following = iter(chosen)
        with self._changed:
            for chunk, generation in zip(batch.chunks, generations, strict=True):
                if chunk.sequence.num_answer == 0:
                    generation.clock.prefill(*times_s)
                choices = next(following) if chunk.samples else []
                self._scheduler.advance(chunk, num_right=max(0, len(choices) - 1))
                if choices:
                    events += self._take(generation, choices)

    def _publish(self, events: Sequence[Delivery]) -> None:
        if events:
            self._loop.call_soon_threadsafe(_deliver, events)

    def _compute(self, batch: Batch, generations: Sequence[PagedGeneration]) -> list[list[Choice | None]]:
        """Run the batch; return the tokens chosen for each chunk that samples."""
        pairs = list(zip(batch.chunks, generations, strict=True))
        logits_BV = self._runner.forward([_piece(*pair) for pair in pairs], batch.fresh_blocks)
        sampling = [(chunk, generation.state) for chunk, generation in pairs if chunk.samples]
        return choose_with_drafts(logits_BV, [state for _, state in sampling], [chunk.drafts for chunk, _ in sampling])

    def _take(self, generation: PagedGeneration, choices: Sequence[Choice | None]) -> list[Delivery]:
        """Add the tokens chosen for it to its answer; return what its reader gets to see."""
        sequence, state = generation.sequence, generation.state
        if sequence not in self._generations:
            return []  # it ended while the step ran
        found = [choice for choice in choices if choice is not None]
        if len(found) < len(choices):
            error = Internal("The model's output for this prompt is not finite.", reason="NOT_FINITE")
            return self._fail(generation, error)
        if state.grammar is not None and (problem := state.grammar.problem):
            # Too complex, or at odds with the other options: its caller's doing, and no fault of the model.
            wrong = InvalidArgument(f"The constraint could not be followed: {problem}.", reason="CONSTRAINT_FAILED")
            return self._fail(generation, wrong)
        generation.clock.token()
        events: list[Delivery] = [(generation, generation.prefilled())] if state.num_chosen == 1 else []
        tokens = [choice for choice in found if not state.is_end(choice.token_id)]
        for choice in tokens:
            sequence.add_answer(choice.token_id)
        if tokens:
            logprobs = [choice.logprobs for choice in tokens if choice.logprobs is not None]
            events.append((generation, Tokens([choice.token_id for choice in tokens], logprobs)))
        if state.has_ended or sequence.num_answer == sequence.max_tokens:
            self._end(generation)
            reason = FinishReason.STOP if state.has_ended else FinishReason.LENGTH
            events.append((generation, generation.finished(reason)))
        return events

    def _fail(self, generation: PagedGeneration, error: TandemError) -> list[Delivery]:
        if generation.sequence not in self._generations:
            return []
        self._end(generation, keep=False)  # whatever went wrong may be in what its blocks hold
        generation.error = error
        return [(generation, error)]


def _piece(chunk: Chunk, generation: PagedGeneration) -> Piece:
    return Piece(
        start=chunk.start,
        token_ids=chunk.token_ids,
        blocks=chunk.blocks,
        samples=chunk.samples,
        num_drafts=chunk.num_drafts,
        images=generation.images,
    )


def _deliver(events: Sequence[Delivery]) -> None:
    for generation, event in events:
        generation.deliver(event)


def _closed() -> Unavailable:
    return Unavailable("The model is being unloaded.", reason="MODEL_DRAINING", retry_after_s=1)
