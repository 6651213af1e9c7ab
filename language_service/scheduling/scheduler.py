"""Chooses what runs in each step.

The policy, in full:

- Sequences stand in line by priority and, within a priority, by arrival. The line never changes: who gives blocks back
  keeps the place it had.
- A step computes at most `max_step_tokens` tokens: first one for every decoding sequence, then prefill, then guesses of
  how the answers go on, if blocks are free for them.
- Of what is left to prefill, the first in line is sure of half, and of all where only those of a smaller priority are
  behind it. The rest goes to whoever has the least left to compute, and back to the first where nobody wants it. So
  short prompts do not wait for a long one, and a long one is not held up for ever: in the end it is the first.
- A sequence begins to run once there are blocks for all of its prompt that has arrived and for the first tokens of its
  answer, one block to spare for each that runs already, and a place among `max_running`. Who cannot begin lets nobody
  behind it begin, so a large prompt is not overtaken for ever; unless the rest of its prompt is still to come.
- Running sequences take blocks as they grow. When none are left, the last of those that run gives back all it holds
  and is computed again later. So the first in line always gets on, whatever the others do, and in the end each one is
  first: every sequence finishes.
- A sequence that waits for the rest of its prompt gives way before all others, also to one that could begin then,
  wherever it stands; but not to one that waits itself, or they would take turns for ever.
- Full blocks are found again by what they hold. A sequence takes such blocks instead of computing them, also in the
  middle of its prefill, and waits a step if another computes just the block it needs next. Its last token is always
  computed, since that one's logits are wanted.
"""

from bisect import insort
from dataclasses import dataclass, field
from itertools import takewhile

from language_service.cache import BlockPool
from language_service.scheduling.sequence import Chunk, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one scheduler."""

    block_size: int  # tokens per block
    max_running: int  # sequences that hold blocks at once
    max_waiting: int  # sequences that wait for blocks at once
    max_step_tokens: int  # tokens computed in one step
    reuse_prefixes: bool = True  # whether equal beginnings of prompts are computed once
    max_drafts: int = 0  # tokens of an answer guessed ahead in one step; 0 guesses nothing

    def __post_init__(self) -> None:
        if self.max_step_tokens <= self.max_running:
            raise ValueError(
                f"max_step_tokens {self.max_step_tokens} leaves no room to prefill beside {self.max_running} decoding "
                "sequences; it must be above max_running"
            )


@dataclass(slots=True)
class Batch:
    """What one step computes, and what happened since the step before."""

    chunks: list[Chunk] = field(default_factory=list)
    fresh_blocks: list[int] = field(default_factory=list)  # that changed owner
    num_preempted: int = 0  # sequences that gave back their blocks for others
    num_found: int = 0  # tokens found computed


class Scheduler:
    """Keeps the sequences of one model and their blocks. Not safe for threads: the engine holds its lock around it."""

    def __init__(self, config: SchedulerConfig, pool: BlockPool) -> None:
        self.config = config
        self.pool = pool
        self._line: list[Sequence] = []
        self._running: set[Sequence] = set()
        self._num_arrived = 0
        self._batch = Batch()  # the next one

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences that hold none."""
        return len(self._line) - len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether one more sequence may wait."""
        return self.num_waiting < self.config.max_waiting

    def add(self, sequence: Sequence) -> None:
        """Let `sequence` take part, behind all of its priority that came before."""
        self._num_arrived += 1
        sequence.arrival = self._num_arrived
        insort(self._line, sequence, key=lambda each: each.rank)

    def remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Forget `sequence` and free all it holds; does nothing for one that is gone.

        Without `keep`, what its blocks hold is not found by others any more.
        """
        if sequence not in self._line:
            return
        if keep:
            self._name_blocks(sequence)
        else:
            self.pool.forget(sequence.blocks)
        self._give_back(sequence)
        self._line.remove(sequence)

    def next_batch(self) -> Batch | None:
        """Choose the next step's chunks and give them their blocks; None if there is nothing to compute."""
        batch = self._batch
        self._grow()
        decoding = [sequence for sequence in self._line if sequence in self._running and sequence.decoding]
        budget = self._add_prefill(self.config.max_step_tokens - len(decoding))
        answers = []
        for sequence in decoding:
            answers.append(sequence.chunk(1, self._draft(sequence, budget)))
            budget -= answers[-1].num_drafts
        batch.chunks[:0] = answers
        if not batch.chunks:
            return None
        self._batch = Batch()
        return batch

    def advance(self, chunk: Chunk, num_right: int = 0) -> None:
        """Note that `chunk` is computed and that the first `num_right` of its guesses were right."""
        sequence = chunk.sequence
        if sequence not in self._running:
            return
        sequence.num_computed = chunk.end - chunk.num_drafts + num_right
        sequence.num_ever_computed = max(sequence.num_ever_computed, sequence.num_computed)
        for index in range(chunk.start // self.config.block_size, self._num_blocks(sequence.num_computed)):
            sequence.found.pop(index, None)  # it gave way since it found them
        if chunk.num_drafts and sequence.lookup is not None:
            sequence.lookup.learn(chunk.num_drafts, num_right)
            self.pool.release(sequence.cut_blocks(self._num_blocks(sequence.num_computed + 1)))
        self._name_blocks(sequence)

    def check(self) -> None:
        """Raise AssertionError unless the blocks the sequences hold are exactly those that are not free."""
        self.pool.check(sequence.blocks for sequence in self._line)

    def _grow(self) -> None:
        """Give every running sequence the blocks its tokens need; others give way where there are none."""
        running = [each for each in self._line if each in self._running]
        for sequence in running:
            if sequence.prompt_ended and sequence.num_pending == 0:
                self._step_back(sequence)
        for sequence in running:
            needed = self._num_blocks(len(sequence.token_ids))
            while sequence in self._running and not self._reserve(sequence, needed):
                self._preempt((self._idle() or [each for each in running if each in self._running])[-1])

    def _add_prefill(self, budget: int) -> int:
        """Add chunks of prompts; return what they leave of the budget."""
        ready = self._ready()
        if not ready:
            return budget
        first, *others = ready
        size, half, chunks = self.config.block_size, -(-budget // 2), []
        # What this step's chunks fill blocks with, or the next steps' of the first in line.
        coming = set(first.block_names[first.num_computed // size : (first.num_computed + budget) // size])
        for sequence in sorted(others, key=lambda each: (-each.priority, each.num_pending)):
            kept = min(first.num_pending, half if sequence.priority == first.priority else budget)
            if kept == budget:
                break
            if self._next_name(sequence) in coming:
                continue
            chunk = sequence.chunk(min(budget - kept, sequence.num_pending))
            coming.update(sequence.block_names[chunk.start // size : chunk.end // size])
            chunks.append(chunk)
            budget -= len(chunk.token_ids)
        chunks.insert(0, first.chunk(min(budget, first.num_pending)))
        self._batch.chunks += chunks
        return budget - len(chunks[0].token_ids)

    def _ready(self) -> list[Sequence]:
        """Let sequences begin, along the line; return those that run and have some of their prompt to compute."""
        ready = []
        admitting = True
        for sequence in self._line:
            if sequence.num_pending == 0 or (sequence.decoding and sequence in self._running):
                continue
            if sequence not in self._running and not (admitting and self._admit(sequence)):
                admitting = admitting and not sequence.prompt_ended
                continue
            self._take_found(sequence)
            if sequence.num_pending > 0:
                ready.append(sequence)
        return ready

    def _draft(self, sequence: Sequence, budget: int) -> list[int]:
        """Return guesses of what `sequence`, which decodes, answers next, with room for them in its blocks."""
        if sequence.lookup is None:
            return []
        count = min(budget, sequence.num_longest - len(sequence.token_ids) - 1)
        drafts = sequence.lookup.draft(sequence.token_ids, count)
        self._reserve(sequence, self._num_blocks(len(sequence.token_ids) + len(drafts)))
        return drafts[: len(sequence.blocks) * self.config.block_size - len(sequence.token_ids)]

    def _admit(self, sequence: Sequence) -> bool:
        """Let `sequence` begin; False, and nothing taken, if there is no place or there are too few blocks."""
        needed = self._num_blocks(len(sequence.token_ids))
        if sequence.prompt_ended:
            needed = min(needed + 1, self._num_blocks(sequence.num_longest))
        idle = self._idle() if sequence.prompt_ended else []
        while (lacking := self._num_lacking(sequence, needed)) > 0 or self.num_running >= self.config.max_running:
            # Blocks of theirs that it would share are not lacking.
            if not idle or lacking > len(self.pool.held_only_by(each.blocks for each in idle) - self._shared(sequence)):
                return False
            self._preempt(idle.pop())
        self._running.add(sequence)
        self._take_found(sequence)  # first, so that making room does not evict what it would have found
        return self._reserve(sequence, needed)

    def _idle(self) -> list[Sequence]:
        """Return those that hold blocks and wait for the rest of their prompt, in line."""
        return [each for each in self._line if each in self._running and each.num_pending == 0]

    def _num_lacking(self, sequence: Sequence, needed: int) -> int:
        """Return how many blocks there are too few for `sequence`, which holds none, to begin with `needed`."""
        return needed - len(self._shared(sequence)) + self._num_spared() - self.pool.num_free

    def _shared(self, sequence: Sequence) -> set[int]:
        """Return the blocks held by others that `sequence`, which holds none, would share to begin with."""
        names = sequence.block_names[: self._num_findable(sequence)]
        found = takewhile(lambda block: block is not None, map(self.pool.find, names))
        return {block for block in found if block is not None and self.pool.is_held(block)}

    def _num_spared(self) -> int:
        """Return the blocks left to those that run, one each while it may grow, so that nobody begins to give way."""
        return sum(
            each.num_pending > 0 and len(each.blocks) < self._num_blocks(each.num_longest) for each in self._running
        )

    def _take_found(self, sequence: Sequence) -> None:
        """Let `sequence` share the blocks that hold its next tokens already, as far as there are any."""
        size = self.config.block_size
        while (name := self._next_name(sequence)) is not None and (block := self.pool.find(name)) is not None:
            index = sequence.num_computed // size
            end = (index + 1) * size
            self.pool.share(block)
            self.pool.release(sequence.blocks[index : index + 1])
            sequence.blocks[index : index + 1] = [block]
            num_new = end - max(index * size, sequence.num_ever_computed)
            if num_new > 0 and index not in sequence.found:
                sequence.found[index] = num_new
                self._batch.num_found += num_new
            sequence.num_computed = end

    def _next_name(self, sequence: Sequence) -> bytes | None:
        """Return the name of the block `sequence` needs next, if it could take one that another has computed."""
        index = sequence.num_computed // self.config.block_size
        return sequence.block_names[index] if index < self._num_findable(sequence) else None

    def _num_findable(self, sequence: Sequence) -> int:
        """Return how many blocks `sequence` could take from others; not the one the last token of its prompt is in."""
        num_tokens = len(sequence.token_ids) - sequence.prompt_ended
        return min(len(sequence.block_names), num_tokens // self.config.block_size)

    def _step_back(self, sequence: Sequence) -> None:
        """Let the last token be computed again: it ran before it was known to be the last, and its logits are gone."""
        size = self.config.block_size
        if sequence.num_computed % size:
            sequence.num_computed -= 1
            return
        # A full block may have other readers by now, so a new one takes its place rather than being written to.
        sequence.num_computed -= size
        sequence.found.pop(sequence.num_computed // size, None)
        sequence.num_named = min(sequence.num_named, sequence.num_computed // size)
        self.pool.release([sequence.blocks.pop()])

    def _reserve(self, sequence: Sequence, num_blocks: int) -> bool:
        """Let `sequence` hold `num_blocks` blocks at least; False, and nothing taken, if they are not free."""
        fresh = self.pool.allocate(max(0, num_blocks - len(sequence.blocks)))
        if fresh is None:
            return False
        sequence.blocks += fresh
        self._batch.fresh_blocks += fresh
        return True

    def _name_blocks(self, sequence: Sequence) -> None:
        """Name the blocks that are full by now, so that others find them."""
        num_full = min(sequence.num_computed // self.config.block_size, len(sequence.block_names))
        for index in range(sequence.num_named, num_full):
            self.pool.name(sequence.blocks[index], sequence.block_names[index])
        sequence.num_named = max(sequence.num_named, num_full)

    def _preempt(self, sequence: Sequence) -> None:
        self._batch.num_preempted += 1
        self._name_blocks(sequence)
        self._give_back(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.pool.release(sequence.cut_blocks(0))
        sequence.num_computed = sequence.num_named = 0
        self._running.discard(sequence)

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.config.block_size)
