"""Simulated gateways of a cell.

Decisions are those of the gateway's own code: routing, admission, and the memory cache with its shared fetches.
"""

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from benchmarks.tools.simulated_replicas import LanguageReplica, Prompt, Times, VisionReplica, Work
from chassis.errors import ResourceExhausted, TandemError, Unavailable
from chassis.lru import LruStore
from chassis.verified_cache import ENTRY_OVERHEAD_BYTES
from gateway.admission.concurrency import ConcurrencyLimit
from gateway.images.entry import Entry
from gateway.images.memory_cache import MemoryCache, SourcedTokens
from gateway.stages.balance import by_prefix, least_busy
from tandem.v1 import gateway_pb2

MAX_ATTEMPTS = 3
REFRESH_S = 2.0  # between two lists of models
_TOKENS = Entry.of(b"")  # stands for the visual tokens of any image. Caches count entries
_LEVELS = {
    "vision": gateway_pb2.CACHE_LEVEL_VISION,
    "in_flight": gateway_pb2.CACHE_LEVEL_IN_FLIGHT,
    "miss": gateway_pb2.CACHE_LEVEL_MISS,
}

Choose = Callable[[Mapping[str, int], bytes], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CellPlan:
    """Size of a cell and its traffic."""

    language: int  # replicas
    vision: int
    gateways: int
    images: int = 1_000_000  # in the catalogue
    zipf: float = 1.1  # exponent of their popularity
    turns: float = 2.0  # mean length of a conversation
    think_s: float = 4.0  # mean time between an answer and the next question
    system_tokens: int = 16
    image_tokens: int = 32
    question_tokens: int = 24
    answer_tokens: float = 128.0  # mean, of an exponential distribution
    kv_blocks: int = 6144
    max_running: int = 64  # in the batch of a replica
    max_waiting: int = 256
    gateway_max_running: int = 256
    gateway_max_waiting: int = 256
    gateway_entries: int = 1024  # images in a gateway's memory: 256 MiB of 32 x 4096 visual tokens
    vision_entries: int = 4096
    redis_entries: int = 65_536
    redis_s: float = 0.0004  # one command
    gateway_s: float = 0.003  # added to a request by the gateway
    reported_loads: bool = True  # whether replicas tell the gateways their load. Else each counts its own calls
    encode_factor: float = 1.0  # of the time of an image
    colocated: bool = False  # language replicas encode, and there is no vision stage


@dataclass(slots=True)
class Tally:
    """The requests that arrived in one window."""

    arrived: int = 0
    first_token_s: list[float] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    token_s: list[float] = field(default_factory=list)  # mean time of a token, by answer
    failures: Counter[str] = field(default_factory=Counter)  # by reason
    levels: Counter[str] = field(default_factory=Counter)  # cache levels of images
    prompt_tokens: int = 0
    cached_tokens: int = 0
    answer_tokens: int = 0
    seconds: float = 0.0

    @property
    def failed(self) -> int:
        """Requests that failed or were refused."""
        return self.failures.total()

    def p99_s(self) -> float:
        """Return the p99 of the time to the first token."""
        return float(np.percentile(self.first_token_s, 99)) if self.first_token_s else float("nan")

    def hit_rate(self) -> float:
        """Return prompt tokens from the KV cache, percent."""
        return 100 * self.cached_tokens / max(1, self.prompt_tokens)

    def level(self, *levels: str) -> float:
        """Return the share of images from these cache levels, percent."""
        return 100 * sum(self.levels[level] for level in levels) / max(1, self.levels.total())


class SimulatedRedis:
    """Knows images for all gateways of a cell."""

    def __init__(self, plan: CellPlan) -> None:
        """Start empty."""
        self.is_lost = False
        self._command_s = plan.redis_s
        self._store: LruStore[int, bool] = LruStore(max_bytes=plan.redis_entries)

    async def has(self, image: int) -> bool:
        """Return whether it has an image, after one command."""
        if self.is_lost:  # the circuit breaker is open
            return False
        await asyncio.sleep(self._command_s)
        with self._store.use(image) as found:
            return bool(found)

    def put(self, image: int) -> None:
        """Store an image."""
        if not self.is_lost:
            self._store.put(image, True, 1)


@dataclass(frozen=True, slots=True)
class Stages:
    """The processes behind the gateways of a cell."""

    language: Mapping[str, LanguageReplica]  # by address
    vision: Mapping[str, VisionReplica]
    redis: SimulatedRedis
    times: Times
    random: np.random.Generator


class Gateway:
    """One gateway process of a cell."""

    def __init__(self, plan: CellPlan, stages: Stages, choose: Choose) -> None:
        """Start idle.

        Args:
            plan: of the cell.
            stages: called by it.
            choose: gives a language replica for loads by replica and a prefix.
        """
        self._plan, self._stages, self._choose = plan, stages, choose
        self._loop = asyncio.get_running_loop()
        self._limit = ConcurrencyLimit(
            max_running=plan.gateway_max_running,
            max_waiting=plan.gateway_max_waiting,
            subject="The gateway",
            reason="GATEWAY_BUSY",
        )
        self._memory = MemoryCache(plan.gateway_entries * ENTRY_OVERHEAD_BYTES)
        self.calls = dict.fromkeys(stages.language, 0)  # in flight from this gateway, by replica
        self._others = dict.fromkeys(stages.language, 0)  # calls of other gateways, as last reported
        self.images = dict.fromkeys(stages.vision, 0)
        self.is_lost = False
        self._turns = itertools.count()

    async def answer(self, image: int, prompt: Prompt, answer_tokens: int, tally: Tally) -> Work | None:
        """Answer one request. Return None if it failed."""
        arrived_s = self._loop.time()
        try:
            async with self._limit.slot():
                work = await self._call(image, prompt, answer_tokens, tally)
        except TandemError as error:
            tally.failures[error.reason] += 1
            return None
        if self.is_lost:
            tally.failures["GATEWAY_LOST"] += 1
            return None
        assert work.first_token_s is not None
        tally.first_token_s.append(work.first_token_s - arrived_s + self._plan.gateway_s)
        tally.queue_s.append(work.queue_s)
        tally.token_s.append(work.token_s)
        tally.prompt_tokens += prompt.num_tokens
        tally.cached_tokens += work.cached_tokens
        tally.answer_tokens += answer_tokens
        return work

    async def refresh(self) -> None:
        """Ask all replicas for their load, again and again."""
        await asyncio.sleep(self._stages.random.random() * REFRESH_S)
        while True:
            for name, own in self.calls.items():
                replica = self._stages.language[name]
                if not replica.is_lost:
                    self._others[name] = max(0, replica.num_calls - own)
            await asyncio.sleep(REFRESH_S)

    def _loads(self) -> dict[str, int]:
        """Return the calls at each replica."""
        if not self._plan.reported_loads:
            return self.calls
        return {name: own + self._others[name] for name, own in self.calls.items()}

    def leave_out(self, names: set[str]) -> None:
        """Choose replicas no more, by address."""
        for name in names:
            self.calls.pop(name, None)
            self.images.pop(name, None)

    async def _call(self, image: int, prompt: Prompt, answer_tokens: int, tally: Tally) -> Work:
        """Call the language stage, on up to three replicas."""
        tried: list[str] = []
        name = self._choose(self._loads(), image.to_bytes(8, "big"))
        extra_s: float | None = None
        while True:
            tried.append(name)
            self.calls[name] += 1
            work = None
            try:
                if extra_s is None:
                    extra_s = await self._visual_tokens(image, tally)
                work = self._stages.language[name].submit(prompt, answer_tokens, extra_s)
                await work.done
            except (Unavailable, ResourceExhausted):
                others = {other: calls for other, calls in self._loads().items() if other not in tried}
                if (work is not None and not work.lost_before_first) or not others or len(tried) == MAX_ATTEMPTS:
                    raise
            else:
                return work
            finally:
                if name in self.calls:
                    self.calls[name] -= 1
            name = least_busy(others, next(self._turns))

    async def _visual_tokens(self, image: int, tally: Tally) -> float:
        """Get visual tokens.

        Returns the time that a colocated encoder takes.
        """
        encoded_s = 0.0

        async def fetch() -> SourcedTokens:
            nonlocal encoded_s
            level = gateway_pb2.CACHE_LEVEL_SHARED
            if not await self._stages.redis.has(image):
                if self._plan.colocated:
                    encoded_s, level = self._stages.times.encode_s(), gateway_pb2.CACHE_LEVEL_MISS
                else:
                    level = await self._encode(image)
                self._stages.redis.put(image)
            return SourcedTokens(_TOKENS, key, level)

        key = image.to_bytes(8, "big")
        async with self._memory.use(key, fetch) as tokens:
            tally.levels[gateway_pb2.CacheLevel.Name(tokens.level).removeprefix("CACHE_LEVEL_").lower()] += 1
        return encoded_s

    async def _encode(self, image: int) -> gateway_pb2.CacheLevel.ValueType:
        """Ask a vision replica, then another one."""
        tried: set[str] = set()
        while True:
            calls = {name: calls for name, calls in self.images.items() if name not in tried}
            name = by_prefix(calls, image.to_bytes(8, "big"))
            tried.add(name)
            self.images[name] += 1
            try:
                return _LEVELS[await self._stages.vision[name].encode(image)]
            except Unavailable:
                if len(tried) in (MAX_ATTEMPTS, len(self.images)):
                    raise
            finally:
                if name in self.images:
                    self.images[name] -= 1
