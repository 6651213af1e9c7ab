"""What an engine is: prompts in as segments, tokens out as events. No tensors are computed here.

The servicer speaks to this interface; `paged_engine` implements it with our own decoder, and an engine of others that
takes prompt embeddings can stand in its place.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import Tensor

from language_service.sampling import Grammar, Logprobs, SamplingOptions


class FinishReason(Enum):
    """Why an answer ended."""

    STOP = "stop"  # end of sequence, or a stop token
    LENGTH = "length"  # max_tokens


@dataclass(frozen=True, slots=True)
class Tokens:
    """The next tokens of an answer."""

    token_ids: list[int]
    logprobs: list[Logprobs]  # one a token where asked for, else none


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens one request took."""

    num_prompt: int  # visual tokens among them
    num_visual: int
    num_cached_prompt: int
    num_answer: int


@dataclass(slots=True, kw_only=True)
class Timings:
    """Where the time of one request went, milliseconds; `language.proto` defines each."""

    queue_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    decode_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefilled:
    """The whole prompt is computed; `language.proto` defines each field."""

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
    """What an engine holds at this moment."""

    num_running: int
    num_waiting: int
    num_used_blocks: int
    num_kept_blocks: int  # that nobody holds and whose content can be found
    num_blocks: int


class Generation(Protocol):
    """One request: feed the prompt in order, end it, read the answer. Used on the event loop only."""

    def add_text(self, token_ids: Sequence[int]) -> None:
        """Add text, at least one token, to the prompt.

        Raises:
            TandemError: what ended the request early.
        """
        ...

    def add_image(self, embeddings_ND: Tensor, visual_key: bytes) -> None:
        """Add an image to the prompt: N visual tokens, and the key that names their content (32 bytes).

        Raises:
            TandemError: what ended the request early.
        """
        ...

    def end_prompt(self, max_tokens: int) -> None:
        """Declare the prompt, which holds a token at least, complete; the answer, of at most `max_tokens`, begins.

        Raises:
            TandemError: what ended the request early.
        """
        ...

    def __aiter__(self) -> AsyncIterator[Event]:
        """Yield `Prefilled`, then the answer as it is made; `Finished` is the last event.

        Raises:
            TandemError: what ended the request early.
        """
        ...

    def cancel(self) -> None:
        """Free all the request holds, at once; does nothing after its end."""
        ...


class Engine(Protocol):
    """Continues many prompts at a time with one model."""

    @property
    def context_length(self) -> int:
        """Most tokens, prompt and answer together, of one request."""
        ...

    def open(
        self, options: SamplingOptions, *, salt: bytes, priority: int, grammar: Grammar | None = None
    ) -> Generation:
        """Start a request.

        Args:
            options: how tokens are chosen.
            salt: prompts share cached prefixes only under the same one.
            priority: larger runs first.
            grammar: what `options.constraint` was compiled to.

        Raises:
            ResourceExhausted: reason 'QUEUE_FULL', with a retry delay.
            Unavailable: reason 'MODEL_DRAINING', the engine is closed.
        """
        ...

    def stats(self) -> EngineStats:
        """Return what the engine holds."""
        ...

    async def close(self) -> None:
        """End what still runs with Unavailable and free all memory."""
        ...
