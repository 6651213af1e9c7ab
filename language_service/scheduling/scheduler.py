"""Chooses what runs in each step.

The policy, in full:

- A step computes at most `max_step_tokens` tokens: first one for every decoding sequence, then prefill by priority and,
  within a priority, first come, first served.
- A sequence whose prompt is still arriving holds blocks for what is here. When the prompt ends, blocks for all of it
  and for the longest answer are taken at once or not at all, so a sequence that decodes never runs out.
- Who cannot get the blocks it needs gives back those it has, starts its prefill over later, and lets nobody behind it
  take any. So two half-arrived prompts never wait for each other, and a large one is not overtaken for ever.
"""

from dataclasses import dataclass

from language_service.cache.blocks import BlockPool
from language_service.scheduling.sequence import Chunk, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one scheduler."""

    block_size: int  # tokens per block
    max_running: int  # sequences that hold blocks at once
    max_waiting: int  # sequences that wait for blocks at once
    max_step_tokens: int  # tokens computed in one step

    def __post_init__(self) -> None:
        if self.max_step_tokens <= self.max_running:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} leaves no room to prefill beside {self.max_running} decoding "
                "sequences; it must be above max_running"
            )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step computes."""

    chunks: list[Chunk]
    fresh_blocks: list[int]  # blocks that changed owner since the batch before


class Scheduler:
    """Keeps the sequences of one model and their blocks. Not safe for threads: the engine holds its lock around it."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self._sequences: dict[Sequence, None] = {}  # an ordered set, in order of arrival
        self._running: dict[Sequence, None] = {}

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return len(self._sequences) - len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether one more sequence may wait."""
        return self.num_waiting < self.config.max_waiting

    def add(self, sequence: Sequence) -> None:
        """Let `sequence` take part, behind all that came before."""
        self._sequences[sequence] = None

    def remove(self, sequence: Sequence) -> None:
        """Forget `sequence` and free all it holds; does nothing for one that is gone."""
        if sequence in self._sequences:
            self._give_back(sequence)
            del self._sequences[sequence]

    def next_batch(self) -> Batch | None:
        """Choose the next step's chunks and give them their blocks; None if there is nothing to compute."""
        while True:
            num_running = self.num_running
            batch = Batch([], [])
            decoding = [sequence for sequence in self._running if sequence.decoding]
            batch.chunks.extend(_chunk(sequence, 1) for sequence in decoding)
            self._add_prefill(batch, self.config.max_step_tokens - len(decoding))
            if batch.chunks:
                return batch
            if self.num_running == num_running:
                return None
            # Nobody could run, but blocks were given back: whoever is first in line may have enough now.

    def advance(self, chunk: Chunk) -> None:
        """Note that `chunk` is computed."""
        if chunk.sequence in self._running:
            chunk.sequence.num_computed = chunk.end

    def check(self) -> None:
        """Raise AssertionError unless the blocks the sequences hold are exactly those that are not free."""
        self.pool.check(sequence.blocks for sequence in self._sequences)

    def _add_prefill(self, batch: Batch, budget: int) -> None:
        prefilling = (sequence for sequence in self._sequences if not sequence.decoding)
        blocked = False
        # Sorting is stable, so within a priority the order of arrival holds.
        for sequence in sorted(prefilling, key=lambda sequence: -sequence.priority):
            if sequence.prompt_ended and sequence.num_pending == 0:
                # The last token ran before it was known to be the last, so its logits were not kept: once more.
                sequence.num_computed -= 1
            if budget == 0 or sequence.num_pending == 0 or not self._has_place(sequence):
                continue
            if self._missing_blocks(sequence) and (blocked or not self._reserve(sequence, batch)):
                blocked = True
                self._give_back(sequence)
                continue
            chunk = _chunk(sequence, min(budget, sequence.num_pending))
            batch.chunks.append(chunk)
            budget -= len(chunk.token_ids)

    def _has_place(self, sequence: Sequence) -> bool:
        return sequence in self._running or self.num_running < self.config.max_running

    def _missing_blocks(self, sequence: Sequence) -> int:
        return max(0, -(-sequence.num_reserved // self.config.block_size) - len(sequence.blocks))

    def _reserve(self, sequence: Sequence, batch: Batch) -> bool:
        """Give `sequence` all the blocks it must hold; False, and nothing taken, if they are not free."""
        fresh = self.pool.allocate(self._missing_blocks(sequence))
        if fresh is None:
            return False
        sequence.blocks += fresh
        batch.fresh_blocks.extend(fresh)
        self._running[sequence] = None
        return True

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.num_computed = 0
        self._running.pop(sequence, None)


def _chunk(sequence: Sequence, length: int) -> Chunk:
    start, end = sequence.num_computed, sequence.num_computed + length
    return Chunk(
        sequence=sequence,
        start=start,
        token_ids=sequence.token_ids[start:end],
        blocks=list(sequence.blocks),
        samples=sequence.prompt_ended and end == len(sequence.token_ids),
    )
