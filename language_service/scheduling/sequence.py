"""One prompt and its answer, as the scheduler sees them."""

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Tokens of one request and how many of them the cache holds.

    A sequence waits until it holds blocks, prefills what has arrived of its prompt, and decodes once the prompt has
    ended and all of it is computed. Counters alone tell these apart, so tokens can be computed again at any time.
    """

    priority: int = 0  # larger runs first
    token_ids: list[int] = field(default_factory=list)  # prompt, then answer; a picture's positions hold 0
    num_prompt: int = 0  # tokens of the prompt that have arrived
    max_tokens: int | None = None  # most tokens of the answer; None while the prompt is still arriving
    num_computed: int = 0  # tokens whose keys and values are cached
    blocks: list[int] = field(default_factory=list)  # blocks held, in the order of the tokens

    def extend_prompt(self, token_ids: Iterable[int]) -> None:
        """Add the next tokens of the prompt."""
        self.token_ids.extend(token_ids)
        self.num_prompt = len(self.token_ids)

    @property
    def prompt_ended(self) -> bool:
        """Whether the whole prompt has arrived."""
        return self.max_tokens is not None

    @property
    def num_answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_pending(self) -> int:
        """Tokens that have arrived and are not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def decoding(self) -> bool:
        """Whether all that is left to compute is the token chosen last."""
        return self.num_answer > 0 and self.num_pending == 1

    @property
    def num_reserved(self) -> int:
        """Tokens the sequence must hold blocks for before it may run."""
        return len(self.token_ids) if self.max_tokens is None else self.num_prompt + self.max_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Consecutive tokens of one sequence to compute in one step.

    Tokens and blocks are copies: the sequence may grow, or be cancelled and lose its blocks, while the step runs.
    """

    sequence: Sequence
    start: int  # position of the first token
    token_ids: list[int]
    blocks: list[int]
    samples: bool  # whether the last token's logits choose the next one

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)
