"""Our own engine: a continuous batch over a paged cache.

Two threads share the sequences, under one lock. The event loop opens, feeds and cancels requests. The engine's thread
schedules a step, computes it and records the result. It gives up the lock while it computes, so the event loop never
waits for the model.

A step works on copies of tokens and block lists (`Chunk`). So a request may end while a step computes it. Its result is
then dropped, and its blocks get no new owner before the next step.

If a step fails, the requests in it fail. After any other error the accounting cannot be trusted. Then all requests fail
and the engine starts over with an empty cache. If its thread dies, all requests fail and the process ends.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import structlog

from chassis.errors import Internal, ResourceExhausted, TandemError, Unavailable
from chassis.vital import vital
from language_service.cache import BlockPool, PrefixHashes, root_hash
from language_service.engine.generation import Delivery, PagedGeneration, publish
from language_service.engine.interface import EngineDescription, EngineStats, Finished
from language_service.engine.metrics import EngineMetrics
from language_service.engine.pauses import Pauses
from language_service.engine.runner import Runner
from language_service.engine.step import StepResult, compute_step
from language_service.engine.turns import Turns
from language_service.sampling import Choice, Grammar, SamplingOptions, SamplingState
from language_service.scheduling import Batch, PromptLookup, Scheduler, SchedulerConfig
from language_service.scheduling import Sequence as ScheduledSequence

_log = structlog.get_logger()

_CHECK_EVERY_S = 10.0


class PagedEngine:
    """Implements `Engine`. Made, used and closed on one event loop."""

    def __init__(self, runner: Runner, config: SchedulerConfig, *, tag: str, model_digest: bytes, turns: Turns) -> None:
        """Start the engine's thread.

        Args:
            runner: decoder and cache. From here on, only the engine's thread uses them.
            config: limits of the scheduler. Its block size must be the cache's.
            tag: the model's tag, for metrics and logs.
            model_digest: of the language half, 32 bytes. Prompts to different models share no blocks.
            turns: on the device. All engines of a process share them.
        """
        self._runner = runner
        self._turns = turns
        self._model = runner.decoder.config
        self._tag = tag
        self._model_digest = model_digest
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._scheduler = self._make_scheduler()
        self._generations: dict[ScheduledSequence, PagedGeneration] = {}
        # Guards scheduler and generations. Notified when there may be something to compute.
        self._condition = threading.Condition()
        self._pauses = Pauses(self._condition)
        self._closed: TandemError | None = None  # why it takes no more requests
        self._checked_s = 0.0  # time of the last check of the accounting
        self._metrics = EngineMetrics(tag, self.stats, runner.description.kernels)
        self._thread = threading.Thread(target=self._live, name=f"engine-{tag}", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests now."""
        return self._closed is None

    @property
    def context_length(self) -> int:
        """Most tokens of one request, as model and cache allow."""
        return min(self._model.context_length, self._runner.cache.config.num_tokens)

    @property
    def description(self) -> EngineDescription:
        """Fixed facts about the engine and its model."""
        return self._runner.description

    def open(
        self,
        options: SamplingOptions,
        *,
        salt: bytes,
        priority: int,
        is_background: bool = False,
        grammar: Grammar | None = None,
    ) -> PagedGeneration:
        """Start a request, see `Engine`."""
        hashes = None
        if self._config.reuse_prefixes:
            root = root_hash(model_digest=self._model_digest, salt=salt)
            hashes = PrefixHashes(root, block_size=self._config.block_size)
        drafter = PromptLookup(self._config.max_drafts) if self._config.max_drafts and grammar is None else None
        generation = PagedGeneration(
            state=SamplingState(options, eos_token_ids=self._model.eos_token_ids, grammar=grammar),
            sequence=ScheduledSequence(priority=priority, is_background=is_background, hashes=hashes, drafter=drafter),
            updating=self._updating,
            cancel=self._cancel,
        )
        with self._condition:
            if self._closed:
                raise self._closed
            if not self._scheduler.has_room:
                message = f"The queue is full with {self._scheduler.num_waiting} requests, so retry later."
                raise ResourceExhausted(message, reason="QUEUE_FULL", retry_after_s=1)
            self._generations[generation.sequence] = generation
            self._scheduler.add(generation.sequence)
        return generation

    def stats(self) -> EngineStats:
        """Return the current load."""
        with self._condition:
            return EngineStats.of(self._scheduler)

    def check(self) -> None:
        """Raise an AssertionError unless sequences use exactly the used blocks."""
        with self._condition:
            self._scheduler.check()

    async def close(self) -> None:
        """Fail unfinished requests with Unavailable and stop the thread.

        The thread first completes its current step.
        """
        error = Unavailable(
            "The model is being unloaded, so retry elsewhere.", reason="MODEL_DRAINING", retry_after_s=1
        )
        with self._condition:
            self._closed = self._closed or error
            for generation in list(self._generations.values()):
                self._end(generation)
                generation.error = error
                generation.deliver(error)
            self._condition.notify()
        await asyncio.to_thread(self._thread.join)
        self._metrics.close()

    # The event loop's side of a request.

    @contextmanager
    def _updating(self, generation: PagedGeneration) -> Iterator[None]:
        """Lock the sequences while a request adds to its prompt.

        Raises the error of a failed request.
        """
        with self._condition:
            if generation.error is not None:
                raise generation.error
            yield
            self._condition.notify()

    def _cancel(self, generation: PagedGeneration) -> None:
        with self._condition:
            if generation.sequence in self._generations:
                self._end(generation)
                self._condition.notify()  # another request may wait for its blocks

    # The engine's thread.

    def _live(self) -> None:
        """Run until the engine is closed.

        Its death ends the process.
        """
        try:
            with vital(f"engine of {self._tag}"):
                self._run()
        except BaseException:
            error = Unavailable("The engine has died, so retry elsewhere.", reason="ENGINE_DEAD", retry_after_s=1)
            with self._condition:
                self._closed = error
            self._start_over(error)

    def _run(self) -> None:
        """Run steps until the engine is closed."""
        while True:
            try:
                work = self._next_work()
                if work is None:
                    return
                self._step(*work)
            except Exception:
                _log.exception("engine failed", tag=self._tag)
                message = "The engine failed and has started over, so retry the request."
                self._start_over(Internal(message, reason="ENGINE_FAILED"))

    def _next_work(self) -> tuple[Batch, list[PagedGeneration]] | None:
        """Wait for the next batch.

        Returns it with the request of each chunk, or None once the engine is closed.
        """
        with self._condition:
            while not self._closed:
                publish(self._loop, [event for each in self._pauses.take_ready() for event in self._accept(each, [])])
                if self._scheduler.is_background and self._turns.waits_if_busy(self._condition):
                    continue
                batch = self._scheduler.next_batch(is_shared=self._turns.is_busy())
                if batch is not None:
                    return batch, [self._generations[chunk.sequence] for chunk in batch.chunks]
                if not self._generations:
                    self._check_idle()
                self._condition.wait(_CHECK_EVERY_S)
            return None

    def _step(self, batch: Batch, generations: Sequence[PagedGeneration]) -> None:
        """Compute a batch, record the result and publish the events."""
        events: list[Delivery] = []
        try:
            with self._turns.take(is_background=all(chunk.sequence.is_background for chunk in batch.chunks)):
                result = compute_step(self._runner, batch, generations)
        except Exception:
            # The requests of this step cannot go on. All others did not take part in it.
            _log.exception("step failed", tag=self._tag, num_sequences=len(generations))
            self._metrics.failed_step()
            with self._condition:
                for generation in generations:
                    events += self._fail(generation, Internal("The model failed in this step.", reason="STEP_FAILED"))
            publish(self._loop, events)
            return
        self._metrics.step(batch, result.seconds, num_accepted=result.num_accepted)
        try:
            self._record(batch, generations, result, events)
        finally:
            publish(self._loop, events)  # even if recording failed: some requests may have finished before that

    def _record(
        self, batch: Batch, generations: Sequence[PagedGeneration], result: StepResult, events: list[Delivery]
    ) -> None:
        """Record the result of a step in scheduler and requests.

        Adds the events of each request to `events` in turn, so that an error loses only later ones.
        """
        with self._condition:
            for chunk, generation, choices in zip(batch.chunks, generations, result.choices, strict=True):
                if chunk.sequence.num_answer == 0:
                    generation.clock.record_prefill(result.started_s, result.seconds)
                if chunk.samples and not choices:
                    self._scheduler.drop_last(chunk)
                else:
                    self._scheduler.advance(chunk, num_accepted=max(0, len(choices) - 1))
                if chunk.samples:
                    events += self._accept(generation, choices)

    def _accept(self, generation: PagedGeneration, choices: Sequence[Choice | None]) -> list[Delivery]:
        """Add tokens to an answer, then end or pause it."""
        if generation.sequence not in self._generations:
            return []  # it ended while the step ran
        grammar = generation.state.grammar
        try:
            events = generation.accept(choices)
        except TandemError as error:
            return self._fail(generation, error)
        if events and isinstance(events[-1], Finished):
            self._end(generation)
        elif grammar is not None and not (grammar.may_step if choices else grammar.is_ready):
            self._pauses.add(generation, grammar)
        return [(generation, event) for event in events]

    def _fail(self, generation: PagedGeneration, error: TandemError) -> list[Delivery]:
        if generation.sequence not in self._generations:
            return []
        self._end(generation, reusable=False)  # its blocks may be the cause
        generation.error = error
        return [(generation, error)]

    def _end(self, generation: PagedGeneration, *, reusable: bool = True) -> None:
        self._scheduler.remove(generation.sequence, reusable=reusable)
        del self._generations[generation.sequence]

    def _check_idle(self) -> None:
        """Check the accounting of an idle engine now and then."""
        if time.monotonic() - self._checked_s >= _CHECK_EVERY_S:
            self._checked_s = time.monotonic()
            self._scheduler.check()

    def _start_over(self, error: TandemError) -> None:
        """Fail all requests and continue with an empty cache."""
        self._metrics.failed_step()
        with self._condition:
            generations = list(self._generations.values())
            self._generations.clear()
            self._scheduler = self._make_scheduler()
            for generation in generations:
                generation.error = error
        publish(self._loop, [(generation, error) for generation in generations])

    def _make_scheduler(self) -> Scheduler:
        return Scheduler(self._config, BlockPool(self._runner.cache.config.num_blocks))
