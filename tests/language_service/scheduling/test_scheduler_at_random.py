"""Run the scheduler under random traffic.

Check every cache slot that a step reads.
"""

import random
from itertools import takewhile

from hypothesis import given, settings
from hypothesis import strategies as st

from language_service.scheduling.scheduler import Batch, Scheduler
from language_service.scheduling.sequence import Chunk, Sequence
from tests.language_service.stepping import BLOCK_SIZE, add_shared, make_scheduler

# Per prompt: segments of token ids, length of the answer in tokens, priority.
Prompts = list[tuple[list[list[int]], int, int]]

segments_of_a_prompt = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=9), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    prompts=st.lists(st.tuples(segments_of_a_prompt, st.integers(1, 12), st.integers(-1, 1)), min_size=1, max_size=10),
    num_blocks=st.integers(12, 40),
    max_running=st.integers(1, 5),
    max_step_tokens=st.integers(6, 20),
    max_drafts=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**32),
)
def test_every_sequence_finishes_and_reads_only_its_own_content(
    prompts: Prompts, max_drafts: int, seed: int, **limits: int
) -> None:
    """Segments arrive, requests are cancelled, and some pause between steps.

    Many prompts share prefixes.
    """
    scheduler = make_scheduler(**limits, max_drafts=max_drafts)
    Traffic(scheduler, random.Random(seed), prompts).run()


class Traffic:
    """Runs sequences to their end.

    Its cache records, for every slot, the tokens up to that position.
    """

    def __init__(self, scheduler: Scheduler, rng: random.Random, prompts: Prompts) -> None:
        self.scheduler, self.rng = scheduler, rng
        self.arriving = {}
        for segments, max_tokens, priority in prompts:
            sequence = add_shared(scheduler, [], None)
            scheduler.remove(sequence)
            sequence.priority = priority
            sequence.is_background = rng.random() < 0.3
            scheduler.add(sequence)
            self.arriving[sequence] = (list(segments), max_tokens)
        self.alive = list(self.arriving)  # in an order that is the same in every run
        self.slots: dict[tuple[int, int], list[int]] = {}

    def run(self) -> None:
        for _ in range(2000):
            if not self.alive:
                break
            self._arrive()
            for sequence in self.alive:
                sequence.is_paused &= self.rng.random() < 0.5
            if self.rng.random() < 0.02:
                self._cancel(self.rng.choice(self.alive))
            batch = self.scheduler.next_batch()
            self.scheduler.check()
            may_wait = self.arriving or not self.alive or any(sequence.is_paused for sequence in self.alive)
            assert batch is not None or may_wait, "all prompts are complete but nothing runs"
            if batch is not None:
                self._compute(batch)
            self.scheduler.check()
        assert not self.alive
        assert self.scheduler.pool.num_used == 0

    def _compute(self, batch: Batch) -> None:
        assert self.scheduler.num_running <= self.scheduler.config.max_running
        assert sum(len(chunk.token_ids) for chunk in batch.chunks) <= self.scheduler.config.max_step_tokens
        if any(not chunk.sequence.is_background for chunk in batch.chunks):
            in_background = [chunk for chunk in batch.chunks if chunk.sequence.is_background]
            assert sum(len(chunk.token_ids) for chunk in in_background if not chunk.samples) <= BLOCK_SIZE
        decoding = {one for one in self.alive if one.decoding and one.blocks and not one.is_paused}
        assert decoding <= {chunk.sequence for chunk in batch.chunks}, "a decoding sequence waited"
        self.slots = {slot: known for slot, known in self.slots.items() if slot[0] not in batch.fresh_blocks}
        written = [
            (chunk, position, (chunk.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE))
            for chunk in batch.chunks
            for position in range(chunk.start, chunk.end)
        ]
        for chunk, position, slot in written:
            assert sum(slot[0] in sequence.blocks for sequence in self.alive) == 1, (
                "another sequence reads a slot that is written"
            )
            self.slots[slot] = self._tokens(chunk)[: position + 1]
        for chunk in batch.chunks:
            for position in range(chunk.end):
                slot = (chunk.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE)
                assert self.slots[slot] == self._tokens(chunk)[: position + 1]
            self._advance(chunk)

    def _tokens(self, chunk: Chunk) -> list[int]:
        """Return the tokens up to the end of a chunk."""
        return [*chunk.sequence.token_ids[: chunk.start], *chunk.token_ids]

    def _advance(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        assert not sequence.is_paused
        if chunk.samples and self.rng.random() < 0.1:  # its constraint is late
            sequence.is_paused = True
            self.scheduler.drop_last(chunk)
            return
        answer = [self.rng.randrange(2) for _ in range(1 + chunk.num_drafts)] if chunk.samples else []
        pairs = zip(chunk.drafts, answer, strict=False)
        num_accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self.scheduler.advance(chunk, num_accepted)
        assert sequence.num_cached_tokens <= max(sequence.num_prompt - 1, 0)
        for token in answer[: num_accepted + 1]:
            sequence.add_answer(token)
        if sequence.prompt_ended:
            assert sequence.max_tokens is not None
            assert sequence.num_answer <= sequence.max_tokens
        if sequence.num_answer == sequence.max_tokens:
            self._cancel(sequence)

    def _cancel(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        self.arriving.pop(sequence, None)
        self.alive.remove(sequence)

    def _arrive(self) -> None:
        for sequence, (segments, max_tokens) in list(self.arriving.items()):
            if self.rng.random() < 0.5:
                continue
            if segments:
                sequence.add_text(segments.pop(0))
            else:
                sequence.max_tokens = max_tokens
                del self.arriving[sequence]
