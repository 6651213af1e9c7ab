"""Follow constraints: which tokens may come next in an answer.

Each constraint has a process of its own, see `grammar_worker`. It computes the next mask while the engine runs a step.
"""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import wait

import numpy as np
from numpy.typing import NDArray

from chassis.errors import InvalidArgument, ResourceExhausted, TandemError, Unavailable
from chassis.single_flight import SingleFlight
from language_service.sampling.grammar_pool import GrammarPool
from language_service.sampling.grammar_process import GrammarProcess, Reply
from language_service.sampling.grammar_text import explain, grammar_of, without_special_texts
from language_service.sampling.grammar_worker import WorkerLimits
from language_service.sampling.options import Constraint, bad_constraint

# R constrained rows, V vocabulary

_MAX_IDLE = 32  # workers that no answer uses
_MAX_BYTES = 512 * 2**20  # of all workers of a model. Their largest is stopped above it.
_MAX_COMPILING = 32  # constraints in flight per model. Each may take seconds.
_MAX_QUICK = 2  # compile at the same time, until they are slow
_MAX_SLOW = 8  # that are slow

_numbers = itertools.count()


class Grammar:
    """The state of one answer in its grammar.

    It lies behind a process. `advance` sends accepted tokens there, and `is_ready` tells whether the next mask is back.
    """

    def __init__(self, worker: GrammarProcess) -> None:
        self._worker = worker
        self._answer = next(_numbers)
        self._accepted = self._mask = worker.first
        self._unsent: list[int] = []  # accepted tokens. While they are the forced ones, the next mask is known.
        self._is_closed = False
        worker.num_answers += 1

    def accept(self, token_id: int) -> None:
        """Advance by the next token of the answer."""
        self._unsent.append(token_id)

    @property
    def forced(self) -> Sequence[int]:
        """Drafts: the next tokens, which seem to be forced.

        Whether they are is known with the next mask. None while it is not settled.
        """
        return self._accepted.result().forced if self.is_settled else ()

    @property
    def forced_token(self) -> int | None:
        """The next token, if it is known to be forced."""
        forced = self._mask.result().forced if self._mask.done() else ()
        return forced[len(self._unsent)] if len(self._unsent) < len(forced) else None

    @property
    def is_settled(self) -> bool:
        """Whether it is known if the answer is complete."""
        return not self._unsent and self._accepted.done()

    @property
    def is_ready(self) -> bool:
        """Whether the mask of the next token is known."""
        return self.forced_token is not None or bool(self._known_mask())

    @property
    def may_step(self) -> bool:
        """Whether the next step may include the answer.

        The mask may come while that step runs. But it must be known that the answer is not complete. No step waits for
        a process that is not quick.
        """
        return self.is_settled if self._worker.is_quick else self.is_ready

    @property
    def is_complete(self) -> bool:
        """Whether no token can follow.

        False while it is not known.
        """
        return not self._unsent and any(reply.is_complete for reply in self._replies())

    @property
    def error(self) -> TandemError | None:
        """The reason why the answer cannot continue, or None.

        A grammar may become too costly on the way, or contradict other options. That is the caller's fault.
        """
        reply = next((reply for reply in self._replies() if reply.problem), None)
        if reply is None:
            return None
        if reply.is_fault:
            return _failed()
        message = f"The constraint could not be followed: it {reply.problem}."
        return InvalidArgument(message, reason="CONSTRAINT_FAILED")

    def when_ready(self, callback: Callable[[], None]) -> None:
        """Call back on any thread, with mask or error."""
        self._mask.add_done_callback(lambda _: callback())

    def close(self) -> None:
        """Forget the answer."""
        if not self._is_closed:
            self._is_closed = True
            self._worker.close_answer(self._answer)

    def mask(self, vocab_size: int) -> NDArray[np.bool_]:
        """Return the allowed next tokens, [V].

        It must be ready.
        """
        if self.forced_token is not None:
            allowed = np.zeros(vocab_size, np.bool_)
            allowed[self.forced_token] = True
            return allowed
        bits = np.frombuffer(self._known_mask(), np.uint8)
        return np.unpackbits(bits, count=vocab_size, bitorder="little").view(np.bool_)

    def _known_mask(self) -> bytes:
        """Return the mask after all forced tokens.

        Empty if another one is next, and while it is not known.
        """
        reply = self._mask.result() if self._mask.done() else Reply()
        return reply.mask if len(self._unsent) == len(reply.forced) else b""

    def _replies(self) -> list[Reply]:
        return [future.result() for future in (self._accepted, self._mask) if future.done()]

    def _queue(self) -> None:
        if self._unsent and not self._is_closed:
            self._accepted, self._mask = self._worker.ask("advance", self._answer, self._unsent, num_replies=2)
            self._unsent = []


def advance(grammars: Sequence[Grammar], *, timeout_s: float) -> None:
    """Send accepted tokens, and learn which answers are complete.

    Waits for that, at most `timeout_s` seconds, and only for quick processes. All then go on with the next masks.
    """
    for grammar in grammars:
        grammar._queue()
    for worker in {grammar._worker for grammar in grammars}:
        worker.send()
    wait([grammar._accepted for grammar in grammars if grammar._worker.is_quick], timeout_s)


def wait_for_masks(grammars: Sequence[Grammar], *, timeout_s: float) -> None:
    """Wait for the next masks."""
    wait([one._mask for one in grammars], timeout_s)


def allowed_tokens(grammars: Sequence[Grammar], vocab_size: int) -> NDArray[np.bool_]:
    """Return the allowed next tokens of each answer, [R, V].

    All must be ready.
    """
    return np.stack([grammar.mask(vocab_size) for grammar in grammars])


class GrammarCompiler:
    """Compiles constraints for one tokenizer and keeps the grammars.

    Used on the event loop.
    """

    def __init__(
        self, tokenizer_json: str, *, vocab_size: int, eos_token_ids: Sequence[int], limits: WorkerLimits | None = None
    ) -> None:
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._limits = limits or WorkerLimits()
        self._pool: GrammarPool | None = None  # opened when first needed, because it takes time and memory
        self._opening = asyncio.Lock()
        self._workers: OrderedDict[Constraint, GrammarProcess] = OrderedDict()  # the one used last comes last
        self._compiling: SingleFlight[Constraint, GrammarProcess] = SingleFlight()
        self._quick, self._num_slow = asyncio.Semaphore(_MAX_QUICK), 0

    async def compile(self, constraint: Constraint) -> Grammar:
        """Return a grammar in its initial state.

        Raises:
            InvalidArgument: reason 'BAD_CONSTRAINT', with the field at fault.
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
            Unavailable: reason 'GRAMMARS_FAILED', with a retry delay.
        """
        worker = self._workers.get(constraint)
        if worker is None or worker.has_ended:
            if constraint not in self._compiling and len(self._compiling) >= _MAX_COMPILING:
                raise _full(f"{_MAX_COMPILING} constraints are compiling already")
            worker = (await self._compiling.run(constraint, lambda: self._start(constraint))).result
            self._workers[constraint] = worker
        self._workers.move_to_end(constraint)
        grammar = Grammar(worker)
        self._evict()
        return grammar

    def close(self) -> None:
        """End all processes."""
        if self._pool is not None:
            self._pool.close()

    async def _start(self, constraint: Constraint) -> GrammarProcess:
        try:
            text = grammar_of(constraint)
        except ValueError as error:
            raise bad_constraint(constraint.kind, explain(constraint, str(error))) from None
        worker = None
        try:
            async with self._quick:
                worker = (await self._open_pool()).open(text)
                await asyncio.wrap_future(worker.begun)
            reply = await self._first_reply(worker)
        except OSError:
            raise _failed() from None
        except BaseException:
            if worker is not None:
                worker.kill()
            raise
        if reply.is_fault:
            raise _failed()
        if reply.problem is not None:
            is_limit = worker.has_ended
            worker.kill()
            raise bad_constraint(constraint.kind, reply.problem if is_limit else explain(constraint, reply.problem))
        return worker

    async def _first_reply(self, worker: GrammarProcess) -> Reply:
        if not worker.first.done():
            if self._num_slow == _MAX_SLOW:
                raise _full(f"{_MAX_SLOW} costly constraints are compiling already")
            self._num_slow += 1
            try:
                await asyncio.wrap_future(worker.first)
            finally:
                self._num_slow -= 1
        return worker.first.result()

    async def _open_pool(self) -> GrammarPool:
        async with self._opening:
            if self._pool is None or not self._pool.is_running:
                self._pool = await asyncio.to_thread(self._make_pool)
            return self._pool

    def _make_pool(self) -> GrammarPool:
        return GrammarPool(
            without_special_texts(self._tokenizer_json),
            vocab_size=self._vocab_size,
            eos_token_ids=self._eos_token_ids,
            limits=self._limits,
            max_bytes=_MAX_BYTES,
        )

    def _evict(self) -> None:
        """Stop the workers that were not used for longest."""
        idle = [constraint for constraint, worker in self._workers.items() if not worker.num_answers]
        for constraint in idle[:-_MAX_IDLE]:
            self._workers.pop(constraint).kill()


def _full(problem: str) -> ResourceExhausted:
    return ResourceExhausted(f"{problem}, so retry later.", reason="QUEUE_FULL", retry_after_s=1)


def _failed() -> Unavailable:
    message = "The process that follows the constraint has ended, so retry the request."
    return Unavailable(message, reason="GRAMMARS_FAILED", retry_after_s=1)
