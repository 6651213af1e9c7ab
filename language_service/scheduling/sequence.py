"""One prompt and its answer, as the scheduler sees them."""

from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field, replace

from language_service.cache import PrefixHashes
from language_service.scheduling.drafts import PromptLookup


@dataclass(slots=True, eq=False, kw_only=True)
class Sequence:
    """The tokens of one request, and its blocks.

    A sequence first waits for blocks. Then it prefills the part of its prompt that has arrived. It decodes once the
    prompt is complete and computed. The counters alone tell these stages apart, so tokens can be computed again at any
    time.
    """

    priority: int = 0  # larger runs first
    is_background: bool = False  # whether it must not slow down others
    hashes: PrefixHashes | None = None  # of its full blocks. None shares no blocks.
    drafter: PromptLookup | None = None  # None drafts nothing
    forced: AbstractSequence[int] = ()  # the next tokens, where its constraint seems to leave no choice
    arrival: int = 0  # arrival number, set by the scheduler
    is_paused: bool = False  # waits for its constraint, so no step computes it
    token_ids: list[int] = field(default_factory=list)  # prompt, then answer. 0 at the positions of images.
    num_prompt: int = 0  # tokens of the prompt that have arrived
    max_tokens: int | None = None  # most tokens of the answer. None while the prompt is still arriving.
    num_computed: int = 0  # tokens whose keys and values are in `blocks`
    num_ever_computed: int = 0  # tokens that steps computed for this sequence, also those lost in a preemption
    cache_hits: dict[int, int] = field(default_factory=dict)  # block index -> its tokens that came from the cache
    blocks: list[int] = field(default_factory=list)  # in the order of the tokens
    num_registered: int = 0  # leading blocks whose hashes are registered

    def add_text(self, token_ids: AbstractSequence[int]) -> None:
        """Add text to the prompt."""
        if self.hashes is not None:
            self.hashes.add_text(token_ids)
        self.token_ids.extend(token_ids)
        self.num_prompt = len(self.token_ids)

    def add_image(self, visual_key: bytes, num_tokens: int) -> None:
        """Add the positions of an image to the prompt."""
        if self.hashes is not None:
            self.hashes.add_image(visual_key, num_tokens)
        self.token_ids.extend([0] * num_tokens)
        self.num_prompt = len(self.token_ids)

    def add_answer(self, token_id: int) -> None:
        """Add the next token of the answer."""
        if self.hashes is not None:
            self.hashes.add_text([token_id])
        self.token_ids.append(token_id)

    @property
    def rank(self) -> tuple[int, int]:
        """Sort key of the order: priority, then arrival."""
        return -self.priority, self.arrival

    @property
    def block_hashes(self) -> AbstractSequence[bytes]:
        """Hashes of the full blocks, if it shares blocks."""
        return () if self.hashes is None else self.hashes.hashes

    @property
    def num_cached_tokens(self) -> int:
        """Tokens that came from the prefix cache."""
        return sum(self.cache_hits.values())

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
        """Tokens that are known but not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def decoding(self) -> bool:
        """Whether only the token chosen last is pending."""
        return self.num_answer > 0 and self.num_pending == 1

    @property
    def max_length(self) -> int:
        """Most tokens it can ever have, as known now."""
        return self.num_prompt + (self.max_tokens or 0)

    def truncate_blocks(self, length: int) -> list[int]:
        """Remove and return the blocks after the first `length`."""
        removed = self.blocks[length:]
        del self.blocks[length:]
        return removed

    def next_chunk(self, length: int) -> "Chunk":
        """Return the next `length` tokens to compute."""
        end = self.num_computed + length
        return Chunk(
            sequence=self,
            start=self.num_computed,
            token_ids=self.token_ids[self.num_computed : end],
            blocks=list(self.blocks),
            samples=self.prompt_ended and end == len(self.token_ids),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The part of one sequence that one step computes.

    Tokens and blocks are copies. While the step runs, the sequence may grow, or be cancelled and lose its blocks.
    """

    sequence: Sequence
    start: int  # position of the first token
    token_ids: list[int]  # at the positions of an image, any number
    blocks: list[int]  # cache blocks of the sequence, in order
    samples: bool  # whether a token is chosen after the last one
    num_drafts: int = 0  # drafts among the last tokens. The logits before each one verify it.
    is_forced: bool = False  # whether its constraint made the drafts

    def with_drafts(self, drafts: AbstractSequence[int]) -> "Chunk":
        """Return this chunk followed by drafts.

        The sequence must have the blocks for them.
        """
        return replace(
            self,
            token_ids=[*self.token_ids, *drafts],
            blocks=list(self.sequence.blocks),
            num_drafts=len(drafts),
            is_forced=len(self.sequence.forced) > 0,
        )

    @property
    def drafts(self) -> list[int]:
        """The drafted tokens."""
        return self.token_ids[len(self.token_ids) - self.num_drafts :]

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.start + len(self.token_ids)
