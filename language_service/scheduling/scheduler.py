"""Choose the tokens that each step computes.

The policy:

- **Order.** Sequences are ordered by priority, then by arrival. The order never changes. A preempted sequence keeps its
  position.
- **Step budget.** A step computes at most `max_step_tokens` tokens. First, every decoding sequence gets one token, also
  one that was preempted and finds all other tokens in the prefix cache. Then prefill takes its share. Drafts get the
  tokens and blocks that are left: tokens that a constraint forces, or else n-grams. The latter only in small steps,
  because in larger ones they cost as much as they may save.
- **Prefill.** Half of the prefill budget belongs to the first sequence that prefills. The other half goes to sequences
  of the same priority, the one with the fewest pending tokens first. A lower priority gets only tokens that the first
  sequence cannot use. All tokens left over go back to the first. So short prompts do not wait for a long one, and the
  long one always advances.
- **Background.** Sequences in the background make a step that others need little longer: together they prefill at most
  one block in it.
- **Admission.** A sequence starts to run when one of `max_running` slots is free and enough blocks are available. It
  needs blocks for the arrived part of its prompt, and one for its answer if the prompt is complete. One more block must
  be left for every running sequence that may grow. A sequence that cannot start blocks all sequences after it, so small
  requests never starve a large one. A sequence with an incomplete prompt blocks no other.
- **Preemption.** Running sequences take blocks as they grow. When no block is available, the last running sequence in
  the order is preempted: it frees all its blocks and is computed again later. So the first sequence always advances,
  and every sequence finishes.
- **Stalled sequences.** A running sequence that waits for the rest of its prompt, or for its constraint, is stalled.
  Stalled sequences are preempted before all others, and also to admit a sequence whose prompt is complete. They are not
  preempted to admit an incomplete prompt, or the two would preempt each other forever.
- **Prefix cache.** Full blocks are found again by the hash of their content. A sequence takes a cached block instead of
  computing it, also in the middle of its prefill. If another sequence computes the block it needs next in this step, it
  waits and takes that block. The last token of a prompt is always computed, because its logits choose the first token
  of the answer.
"""

from bisect import insort
from dataclasses import dataclass, field

from language_service.cache import BlockPool
from language_service.scheduling.block_manager import BlockManager
from language_service.scheduling.prefill import share_prefill
from language_service.scheduling.sequence import Chunk, Sequence
from language_service.scheduling.speculation import add_drafts


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one scheduler.

    Raises:
        ValueError: `max_step_tokens` is not above `max_running`.
    """

    block_size: int  # tokens per block
    max_running: int  # sequences that have blocks at the same time
    max_waiting: int  # sequences that wait for blocks at the same time
    max_step_tokens: int  # tokens computed in one step
    reuse_prefixes: bool = True  # whether equal prefixes share blocks
    max_drafts: int = 0  # n-gram drafts per sequence and step, 0 for none
    jump_ahead: bool = True  # whether forced tokens are computed together with the token before them

    def __post_init__(self) -> None:
        if self.max_step_tokens <= self.max_running:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} leaves no tokens for prefill while {self.max_running} "
                "sequences decode, so set it above max_running"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """The work of one step, and events since the last."""

    chunks: list[Chunk] = field(default_factory=list)
    fresh_blocks: list[int] = field(default_factory=list)  # blocks that changed owner
    num_preempted: int = 0  # sequences
    num_cached_tokens: int = 0  # tokens taken from the prefix cache


class Scheduler:
    """Schedules the sequences of one model.

    Not thread-safe: the engine calls it under its lock.
    """

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self._blocks = BlockManager(pool, config.block_size)
        self._sequences: list[Sequence] = []  # all of them, in order
        self._running: set[Sequence] = set()
        self._num_arrived = 0
        self._num_preempted = 0  # since the last batch

    @property
    def num_running(self) -> int:
        """Sequences that have blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that have no blocks."""
        return len(self._sequences) - len(self._running)

    @property
    def is_background(self) -> bool:
        """Whether it has sequences, all of them in the background."""
        return bool(self._sequences) and all(each.is_background for each in self._sequences)

    @property
    def has_room(self) -> bool:
        """Whether the queue takes one more sequence."""
        return self.num_waiting < self.config.max_waiting

    def add(self, sequence: Sequence) -> None:
        """Add `sequence` after all others of its priority."""
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        insort(self._sequences, sequence, key=lambda each: each.rank)

    def remove(self, sequence: Sequence, *, reusable: bool = True) -> None:
        """Remove `sequence` and free its blocks.

        Does nothing if it is gone already.

        Args:
            sequence: one that finished, failed or was cancelled.
            reusable: whether the prefix cache may keep its full blocks.
        """
        if sequence not in self._sequences:
            return
        self._stop(sequence, reusable=reusable)
        self._sequences.remove(sequence)

    def next_batch(self, *, is_shared: bool = False) -> Batch | None:
        """Choose the chunks of the next step.

        Gives them their blocks. Returns None if there is nothing to compute.

        Args:
            is_shared: whether another scheduler's users wait for the device meanwhile.
        """
        self._grow()
        ready = self._admit_waiting()
        # After the admission, which lets preempted sequences decode whose other tokens are all in the prefix cache.
        decoding = [each for each in self._sequences if each in self._running and each.decoding and not each.is_paused]
        budget = self.config.max_step_tokens - len(decoding)
        prefill = share_prefill(
            ready,
            budget,
            self._blocks.next_hash,
            block_size=self.config.block_size,
            is_shared=is_shared or any(not each.is_background for each in decoding),
        )
        budget -= sum(len(chunk.token_ids) for chunk in prefill)
        chunks = add_drafts(
            [*(each.next_chunk(1) for each in decoding), *prefill],
            budget,
            self._blocks,
            jump_ahead=self.config.jump_ahead,
        )
        if not chunks:
            return None
        batch = Batch(chunks, self._blocks.fresh_blocks, self._num_preempted, self._blocks.num_cached_tokens)
        self._blocks.fresh_blocks, self._num_preempted, self._blocks.num_cached_tokens = [], 0, 0
        return batch

    def advance(self, chunk: Chunk, num_accepted: int = 0) -> None:
        """Record that a step computed `chunk`.

        Args:
            chunk: from the last batch.
            num_accepted: drafts that were accepted, counted from the first one.
        """
        sequence = chunk.sequence
        if sequence not in self._running:
            return
        end = chunk.end - chunk.num_drafts + num_accepted
        self._blocks.record_computed(sequence, chunk.start, end)
        if chunk.num_drafts:
            if sequence.drafter is not None and not chunk.is_forced:
                sequence.drafter.learn(chunk.num_drafts, num_accepted)
            self._blocks.trim(sequence, end + 1)

    def drop_last(self, chunk: Chunk) -> None:
        """Record that a step computed `chunk`, but chose no token.

        Its last token is computed again, for its logits.
        """
        sequence = chunk.sequence
        if sequence not in self._running:
            return
        end = chunk.end - chunk.num_drafts - 1
        self._blocks.record_computed(sequence, chunk.start, end)
        if chunk.num_drafts:
            self._blocks.trim(sequence, end + 1)

    def check(self) -> None:
        """Check that exactly the blocks of the sequences are used.

        Raises:
            AssertionError: they are not.
        """
        self.pool.check(sequence.blocks for sequence in self._sequences)

    def _grow(self) -> None:
        """Give running sequences blocks for their tokens.

        Preempts others if none are available.
        """
        running = [each for each in self._sequences if each in self._running]
        for sequence in running:
            if sequence.prompt_ended and sequence.num_pending == 0:
                self._blocks.rewind(sequence)
        for sequence in running:
            needed = self._blocks.num_blocks(len(sequence.token_ids))
            while sequence in self._running and not self._blocks.reserve(sequence, needed):
                self._preempt((self._stalled() or [each for each in running if each in self._running])[-1])

    def _admit_waiting(self) -> list[Sequence]:
        """Admit waiting sequences in order.

        Returns all running ones that have tokens to prefill.
        """
        ready = []
        admitting = True
        for sequence in self._sequences:
            if sequence.num_pending == 0 or sequence.is_paused or (sequence.decoding and sequence in self._running):
                continue
            if sequence not in self._running and not (admitting and self._admit(sequence)):
                admitting = admitting and not sequence.prompt_ended
                continue
            self._blocks.take_cached(sequence)
            if sequence.num_pending > 0 and not sequence.decoding:
                ready.append(sequence)
        return ready

    def _admit(self, sequence: Sequence) -> bool:
        """Let `sequence` run.

        Returns False if slots or blocks do not suffice, even after preempting all stalled sequences.
        """
        needed = self._blocks.num_blocks(len(sequence.token_ids))
        if sequence.prompt_ended:
            needed = min(needed + 1, self._blocks.num_blocks(sequence.max_length))
        stalled = self._stalled() if sequence.prompt_ended else []
        while (missing := self._num_missing(sequence, needed)) > 0 or self.num_running >= self.config.max_running:
            # Preempting stalled sequences frees the blocks that only they use, less those that this one would share.
            freeable = self.pool.used_only_by(each.blocks for each in stalled)
            if not stalled or missing > len(freeable - self._blocks.shared_with_others(sequence)):
                return False
            self._preempt(stalled.pop())
        self._running.add(sequence)
        self._blocks.take_cached(sequence)  # before reserving, which might evict these very blocks
        return self._blocks.reserve(sequence, needed)

    def _num_missing(self, sequence: Sequence, needed: int) -> int:
        """Return the number of blocks missing to start `sequence`.

        It must have none yet, and needs `needed` blocks to start.
        """
        num_new = needed - len(self._blocks.shared_with_others(sequence))
        return num_new + self._num_headroom() - self.pool.num_available

    def _num_headroom(self) -> int:
        """Return the number of blocks to leave for running sequences.

        So the next steps need not preempt one.
        """
        return sum(
            each.num_pending > 0 and len(each.blocks) < self._blocks.num_blocks(each.max_length)
            for each in self._running
        )

    def _stalled(self) -> list[Sequence]:
        """Return the stalled sequences in order.

        They run, but wait for the rest of their prompt or for their constraint.
        """
        return [each for each in self._sequences if each in self._running and (each.num_pending == 0 or each.is_paused)]

    def _preempt(self, sequence: Sequence) -> None:
        self._num_preempted += 1
        self._stop(sequence)

    def _stop(self, sequence: Sequence, *, reusable: bool = True) -> None:
        self._blocks.free(sequence, reusable=reusable)
        self._running.discard(sequence)
