"""One prompt and its answer, as the scheduler sees them."""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

from language_service.cache import PrefixNames
from language_service.scheduling.drafts import PromptLookup


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """Tokens of one request and how many of them the cache holds.

    A sequence waits until it holds blocks, prefills what has arrived of its prompt, and decodes once the prompt has
    ended and all of it is computed. Counters alone tell these apart, so tokens can be computed again at any time.
    """

    priority: int = 0  # larger runs first
    names: PrefixNames | None = None  # of its full blocks; None shares nothing with others
    lookup: PromptLookup | None = None  # guesses how the answer goes on; None guesses nothing
    arrival: int = 0  # place in the order of arrival, given by the scheduler
    token_ids: list[int] = field(default_factory=list)  # prompt, then answer; an image's positions hold 0
    num_prompt: int = 0  # tokens of the prompt that have arrived
    max_tokens: int | None = None  # most tokens of the answer; None while the prompt is still arriving
    num_computed: int = 0  # tokens whose keys and values are cached
    num_ever_computed: int = 0  # tokens a step computed for this sequence, blocks it gave back since among them
    found: dict[int, int] = field(default_factory=dict)  # by place of a block: its tokens that others had computed
    blocks: list[int] = field(default_factory=list)  # blocks held, in the order of the tokens
    num_named: int = 0  # of them, those whose content was named

    def add_text(self, token_ids: AbstractSequence[int]) -> None:
        """Add text to the prompt."""
        if self.names is not None:
            self.names.add_text(token_ids)
        self.token_ids.extend(token_ids)
        self.num_prompt = len(self.token_ids)

    def add_image(self, visual_key: bytes, num_tokens: int) -> None:
        """Add the positions of an image to the prompt."""
        if self.names is not None:
            self.names.add_image(visual_key, num_tokens)
        self.token_ids.extend([0] * num_tokens)
        self.num_prompt = len(self.token_ids)

    def add_answer(self, token_id: int) -> None:
        """Add the next token of the answer."""
        if self.names is not None:
            self.names.add_text([token_id])
        self.token_ids.append(token_id)

    @property
    def rank(self) -> tuple[int, int]:
        """Place in line: by priority, then by arrival; the smallest is first."""
        return -self.priority, self.arrival

    @property
    def block_names(self) -> AbstractSequence[bytes]:
        """Names of the full blocks, none where nothing is shared."""
        return () if self.names is None else self.names.names

    @property
    def num_found(self) -> int:
        """Tokens others had computed, so that this sequence never did."""
        return sum(self.found.values())

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
    def num_longest(self) -> int:
        """Most tokens it will ever have, as far as that is known."""
        return self.num_prompt + (self.max_tokens or 0)

    def cut_blocks(self, length: int) -> list[int]:
        """Keep the first `length` of the blocks and return the others."""
        cut = self.blocks[length:]
        del self.blocks[length:]
        return cut

    def chunk(self, length: int, drafts: AbstractSequence[int] = ()) -> "Chunk":
        """Return the next `length` tokens to compute, and guesses after them."""
        end = self.num_computed + length
        return Chunk(
            sequence=self,
            start=self.num_computed,
            token_ids=[*self.token_ids[self.num_computed : end], *drafts],
            blocks=list(self.blocks),
            samples=self.prompt_ended and end == len(self.token_ids),
            num_drafts=len(drafts),
        )


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
    num_drafts: int = 0  # last tokens that are guesses, each checked by the logits before it

    @property
    def drafts(self) -> list[int]:
        """The guesses."""
        return self.token_ids[len(self.token_ids) - self.num_drafts :]

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)
