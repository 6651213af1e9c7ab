"""The interface of an engine.

Prompts come in as segments, tokens go out as events.

The servicer uses nothing else of an engine, so any engine that takes prompt embeddings can stand behind it.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from language_service.engine.turns import Turns
from language_service.kernels import AttentionName, KernelName
from language_service.model import Grid
from language_service.sampling import Grammar, Logprobs, SamplingOptions
from language_service.scheduling import Scheduler, SchedulerConfig


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"  # end of sequence, stop token or complete constraint
    LENGTH = "length"  # max_tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """The next tokens of an answer."""

    token_ids: list[int]
    logprobs: list[Logprobs]  # one per token if requested, else empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    num_prompt: int  # includes visual tokens
    num_visual: int
    num_cached_prompt: int
    num_answer: int


@dataclass(slots=True, kw_only=True)
class Timings:
    """Times of one request, milliseconds. `language.proto` defines each."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """The whole prompt is computed. `language.proto` defines each field."""

    num_cached_prompt: int
    queue_ms: float
    prefill_ms: float


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    reason: FinishReason
    usage: Usage
    timings: Timings


Event = Prefilled | Tokens | Finished


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """Current load of an engine."""

    num_running: int  # sequences that have blocks
    num_waiting: int  # sequences that have none
    num_used_blocks: int
    num_evictable_blocks: int  # unused, but with reusable content
    num_blocks: int

    @classmethod
    def of(cls, scheduler: Scheduler) -> "EngineStats":
        """Return the load of a scheduler."""
        return cls(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_used_blocks=scheduler.pool.num_used,
            num_evictable_blocks=scheduler.pool.num_evictable,
            num_blocks=scheduler.pool.num_blocks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """Fixed facts about an engine and its model."""

    backend: str  # library that computes, such as 'torch'
    kernels: str  # kind of kernels, for people
    num_parameters: int
    num_weight_bytes: int
    block_size: int  # tokens
    num_blocks: int
    num_cache_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Settings of an engine."""

    dtype: torch.dtype
    device: torch.device
    scheduling: SchedulerConfig
    cache_bytes: int | None  # size of the KV cache. None sizes it by `cache_fraction`.
    cache_fraction: float = 0.5  # of the memory available after the weights are loaded
    kernels: KernelName = "auto"  # compute the decoder. 'auto' takes the fastest.
    decode_attention: AttentionName = "auto"  # computes attention of decoding sequences. 'auto' measures on a GPU.
    engine_args: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))  # further ones, of vLLM only
    turns: Turns = field(default_factory=Turns)  # on the device. The engines of a process share them.


class Generation(Protocol):
    """One request: add the prompt, end it, read the answer.

    Used on the event loop only.
    """

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add at least one token of text to the prompt.

        Raises:
            TandemError: the request has failed already.
        """
        ...

    def add_image(self, embeddings_NX: Tensor, visual_key: bytes, grid: Grid | None = None) -> None:
        """Add an image to the prompt.

        Args:
            embeddings_NX: its N visual tokens, each the embedding, then its vector for each DeepStack level.
            visual_key: identifies their content, 32 bytes.
            grid: their rows and columns. None if the model's visual tokens have no grid.

        Raises:
            TandemError: the request has failed already.
        """
        ...

    def end_prompt(self, max_tokens: int) -> None:
        """End the prompt and start an answer of `max_tokens` tokens.

        The prompt must have at least one token.

        Raises:
            TandemError: the request has failed already.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield `Prefilled`, then `Tokens` as they are chosen, then `Finished`.

        Raises:
            TandemError: the request failed.
        """
        ...

    def cancel(self) -> None:
        """Free everything the request uses, at once.

        Does nothing after its end.
        """
        ...


class Engine(Protocol):
    """Answers many prompts at the same time with one model."""

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests now."""
        ...

    @property
    def context_length(self) -> int:
        """Most tokens of one request, prompt and answer together."""
        ...

    @property
    def description(self) -> EngineDescription:
        """Fixed facts about the engine and its model."""
        ...

    def open(
        self,
        options: SamplingOptions,
        *,
        salt: bytes,
        priority: int,
        is_background: bool = False,
        grammar: Grammar | None = None,
    ) -> Generation:
        """Start a request.

        Args:
            options: how tokens are chosen.
            salt: requests share cached prefixes only under the same salt.
            priority: larger runs first.
            is_background: it must not slow down others. An engine may ignore this.
            grammar: the compiled `options.constraint`, if there is one.

        Raises:
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
            Unavailable: reason 'MODEL_DRAINING', the engine is closed, or 'ENGINE_DEAD'.
            InvalidArgument: reason 'NOT_SUPPORTED', the engine cannot follow an option.
        """
        ...

    def stats(self) -> EngineStats:
        """Return the current load."""
        ...

    async def close(self) -> None:
        """Fail all unfinished requests with Unavailable and free all memory."""
        ...
