"""Simulated replicas of both stages, with a real block pool.

Only the time of computing is drawn. Blocks of the KV cache are accounted for by the engine's `BlockPool`, and visual
tokens by the `LruStore` and `SingleFlight` of the services.
"""

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from chassis.errors import ResourceExhausted, Unavailable
from chassis.lru import LruStore
from chassis.single_flight import SingleFlight
from language_service.cache import BlockPool

BLOCK = 16  # tokens


class Times(Protocol):
    """Seconds of the work of a replica."""

    def step_s(self, sequences: int) -> float:
        """Return the time of a step that decodes sequences."""

    def prefill_s(self, tokens: int) -> float:
        """Return the time that prefill adds to a step."""

    def encode_s(self) -> float:
        """Draw the time to encode one image."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Length of a prompt, and hashes of its blocks.

    The hashes go on for the full blocks of its answer.
    """

    num_tokens: int
    hashes: Sequence[bytes]


@dataclass(slots=True, eq=False)
class Work:
    """One call of a language replica."""

    prompt: Prompt
    answer_tokens: int
    extra_s: float  # computed before the prefill
    arrived_s: float
    done: "asyncio.Future[None]"
    queue_s: float = 0.0
    ended_s: float = 0.0
    first_token_s: float | None = None  # simulated time of the first token
    lost_before_first: bool = True  # of a lost replica: whether no token had been sent
    cached_tokens: int = 0
    blocks: list[int] = field(default_factory=list)

    @property
    def token_s(self) -> float:
        """Mean time between two tokens of the answer."""
        assert self.first_token_s is not None
        return (self.ended_s - self.first_token_s) / max(1, self.answer_tokens - 1)


class LanguageReplica:
    """Continuous batching with chunked prefill and a prefix cache.

    A step takes as long as its batch decides. Prefill is done in order of arrival, and lets decoding wait. All
    blocks of an answer are taken at its start.
    """

    def __init__(
        self,
        name: str,
        times: Times,
        *,
        num_blocks: int,
        max_running: int,
        max_waiting: int,
        jitter: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """Start idle.

        Args:
            name: its address.
            times: of its work.
            num_blocks: of the KV cache.
            max_running: sequences in a batch.
            max_waiting: sequences in the queue. Further ones are refused.
            jitter: draws the part of a step, 0 to 1, that is left when a call arrives.
        """
        self.name = name
        self.is_lost = False
        self._is_noticed = False
        self.busy_s = 0.0
        self._times, self._jitter = times, jitter
        self._max_running, self._max_waiting = max_running, max_waiting
        self._pool = BlockPool(num_blocks)
        self._waiting: deque[Work] = deque()
        self._running: list[tuple[float, int, Work]] = []  # a heap by the step that ends each
        self._order = itertools.count()
        self._steps = 0.0  # done so far
        self._decodes_from_s = 0.0  # simulated time up to which steps or prefill are accounted for
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def num_calls(self) -> int:
        """Sequences that run or wait."""
        return len(self._running) + len(self._waiting)

    def submit(self, prompt: Prompt, answer_tokens: int, extra_s: float = 0.0) -> Work:
        """Begin to answer a prompt.

        Raises:
            ResourceExhausted: the queue is full.
            Unavailable: the replica was lost, and this was noticed.
        """
        if self._is_noticed:
            raise _lost("LANGUAGE_UNREACHABLE")
        if len(self._waiting) >= self._max_waiting:
            raise ResourceExhausted("The queue is full.", reason="ENGINE_BUSY", retry_after_s=1.0)
        work = Work(prompt, answer_tokens, extra_s, self._loop.time(), self._loop.create_future())
        self._waiting.append(work)
        if not self.is_lost:
            self._start_waiting()
        return work

    def lose(self, noticed_after_s: float) -> None:
        """Stop all work.

        Callers see an error some seconds later, as they do when a network is lost. Later calls hang for as long.
        """
        self.is_lost = True
        for work in [*self._waiting, *(work for _, _, work in self._running)]:
            work.lost_before_first = work.first_token_s is None or work.first_token_s > self._loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._loop.call_later(noticed_after_s, self._fail_all)

    def _fail_all(self) -> None:
        self._is_noticed = True
        for work in [*self._waiting, *(work for _, _, work in self._running)]:
            if not work.done.done():
                work.done.set_exception(_lost("LANGUAGE_UNREACHABLE"))
        self._waiting.clear()
        self._running.clear()

    def _advance(self, to_s: float) -> None:
        """Do the steps up to a time."""
        elapsed_s = to_s - self._decodes_from_s
        if elapsed_s > 0:
            if self._running:
                self._steps += elapsed_s / self._times.step_s(len(self._running))
                self.busy_s += elapsed_s
            self._decodes_from_s = to_s

    def _start_waiting(self) -> None:
        """Start calls that fit, and plan the next end."""
        while self._waiting and len(self._running) < self._max_running and self._take_blocks(self._waiting[0]):
            self._start(self._waiting.popleft())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._running:
            left = max(0.0, self._running[0][0] - self._steps)
            at_s = self._decodes_from_s + left * self._times.step_s(len(self._running))
            self._timer = self._loop.call_at(max(at_s, self._loop.time()), self._end_finished)

    def _start(self, work: Work) -> None:
        """Compute the prompt after the running step and earlier prompts."""
        now_s = self._loop.time()
        self._advance(now_s)
        if self._decodes_from_s <= now_s and self._running:  # a step is running, and no prefill
            self._advance(now_s + self._jitter() * self._times.step_s(len(self._running)))
        began_s = max(now_s, self._decodes_from_s)
        prefill_s = work.extra_s + self._times.prefill_s(work.prompt.num_tokens - work.cached_tokens)
        self.busy_s += prefill_s
        self._decodes_from_s = work.first_token_s = began_s + prefill_s
        work.queue_s = began_s - work.arrived_s
        heapq.heappush(self._running, (self._steps + work.answer_tokens - 1, next(self._order), work))

    def _end_finished(self) -> None:
        self._timer = None
        self._advance(self._loop.time())
        while self._running and self._running[0][0] <= self._steps + 1e-6:
            _, _, work = heapq.heappop(self._running)
            for block, block_hash in zip(work.blocks, work.prompt.hashes, strict=False):
                self._pool.register(block, block_hash)
            self._pool.release(work.blocks)
            work.ended_s = self._loop.time()
            if not work.done.done():
                work.done.set_result(None)
        self._start_waiting()

    def _take_blocks(self, work: Work) -> bool:
        """Take cached blocks, and others for the rest."""
        prompt, pool = work.prompt, self._pool
        cached: list[int] = []
        # The last token of a prompt is always computed.
        for block_hash in itertools.islice(prompt.hashes, (prompt.num_tokens - 1) // BLOCK):
            block = pool.find(block_hash)
            if block is None:
                break
            pool.share(block)
            cached.append(block)
        fresh = pool.allocate(_num_blocks(prompt.num_tokens, work.answer_tokens) - len(cached))
        if fresh is None:
            pool.release(cached)
            return False
        work.blocks = cached + fresh
        work.cached_tokens = len(cached) * BLOCK
        # Prefill runs in order of arrival, so the blocks are filled when the next call reads them.
        for block, block_hash in zip(
            work.blocks, itertools.islice(prompt.hashes, prompt.num_tokens // BLOCK), strict=False
        ):
            pool.register(block, block_hash)
        return True


def _lost(reason: str) -> Unavailable:
    return Unavailable("The replica was lost.", reason=reason)


def _num_blocks(prompt: int, answer: int) -> int:
    """Return how many blocks a sequence gets in the end.

    It reserves one for the answer, and never computes the last token.
    """
    reserved = min(-(-prompt // BLOCK) + 1, -(-(prompt + answer) // BLOCK))
    return max(reserved, -(-(prompt + answer - 1) // BLOCK))


class VisionReplica:
    """Encodes one image at a time, with a cache."""

    def __init__(self, name: str, times: Times, *, cache_entries: int) -> None:
        """Start idle, with room for some images."""
        self.name = name
        self.busy_s = 0.0
        self._times = times
        self._noticed_at_s: float | None = None
        self._loop = asyncio.get_running_loop()
        self._cache: LruStore[int, bool] = LruStore(max_bytes=cache_entries, clock=self._loop.time)
        self._in_flight: SingleFlight[int, None] = SingleFlight()
        self._free_from_s = 0.0

    async def encode(self, image: int) -> str:
        """Return the cache level that had the image's visual tokens.

        Raises:
            Unavailable: the replica was lost.
        """
        if self._noticed_at_s is None:
            with self._cache.use(image) as found:
                if found:
                    return "vision"
        flight = await self._in_flight.run(image, lambda: self._encode(image))
        if self._noticed_at_s is not None:
            await asyncio.sleep(self._noticed_at_s - self._loop.time())
            raise _lost("VISION_UNREACHABLE")
        return "in_flight" if flight.joined else "miss"

    def lose(self, noticed_after_s: float) -> None:
        """Answer nothing more. Callers see an error some seconds later."""
        self._noticed_at_s = self._loop.time() + noticed_after_s

    async def _encode(self, image: int) -> None:
        took_s = self._times.encode_s()
        self._free_from_s = max(self._free_from_s, self._loop.time()) + took_s
        self.busy_s += took_s
        await asyncio.sleep(self._free_from_s - self._loop.time())
        self._cache.put(image, True, 1)
