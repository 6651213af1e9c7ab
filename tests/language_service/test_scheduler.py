"""The scheduler's policy, stepped by hand and at random; no tensor is computed."""

import random
from itertools import takewhile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language_service.cache.blocks import BlockPool
from language_service.cache.prefix import PrefixNames, root_name
from language_service.scheduling.drafts import PromptLookup
from language_service.scheduling.scheduler import Batch, Scheduler, SchedulerConfig
from language_service.scheduling.sequence import Chunk, Sequence

BLOCK_SIZE = 4


def make_scheduler(*, num_blocks: int = 32, **limits: Any) -> Scheduler:
    limits = {"max_running": 4, "max_waiting": 16, "max_step_tokens": 16, **limits}
    return Scheduler(SchedulerConfig(block_size=BLOCK_SIZE, **limits), BlockPool(num_blocks))


def add(scheduler: Scheduler, num_prompt: int, max_tokens: int | None = 4, priority: int = 0) -> Sequence:
    """Add a sequence that shares nothing with others."""
    sequence = Sequence(priority=priority)
    sequence.add_text([1] * num_prompt)
    sequence.max_tokens = max_tokens
    scheduler.add(sequence)
    return sequence


def add_named(scheduler: Scheduler, token_ids: list[int], max_tokens: int | None = 4, salt: bytes = b"") -> Sequence:
    """Add a sequence that shares what it can."""
    root = root_name(model_digest=bytes(32), salt=salt)
    lookup = PromptLookup(scheduler.config.max_drafts) if scheduler.config.max_drafts else None
    sequence = Sequence(names=PrefixNames(root, block_size=BLOCK_SIZE), lookup=lookup)
    sequence.add_text(token_ids)
    sequence.max_tokens = max_tokens
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler) -> Batch | None:
    """Run one step as the engine does: every chunk computed, every one that samples gains a token."""
    batch = scheduler.next_batch()
    if batch is None:
        return None
    for chunk in batch.chunks:
        scheduler.advance(chunk)
        if chunk.samples:
            chunk.sequence.add_answer(1)
            if chunk.sequence.num_answer == chunk.sequence.max_tokens:
                scheduler.remove(chunk.sequence)
    return batch


def sizes(batch: Batch | None) -> list[tuple[Sequence, int]]:
    assert batch is not None
    return [(chunk.sequence, len(chunk.token_ids)) for chunk in batch.chunks]


def test_a_long_prompt_is_cut_to_the_budget_and_decodes_go_first() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    short = add(scheduler, 3)
    long = add(scheduler, 20)
    assert sizes(step(scheduler)) == [(short, 3), (long, 5)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 7)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 7)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 1)]


def test_only_the_chunk_that_ends_the_prompt_samples() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    add(scheduler, 17)
    batches = [step(scheduler) for _ in range(4)]
    assert [chunk.samples for batch in batches if batch for chunk in batch.chunks] == [False, False, True, True]


def test_first_come_first_served_within_a_priority() -> None:
    scheduler = make_scheduler(max_running=1)
    first, second, urgent = add(scheduler, 2, 1), add(scheduler, 2, 1), add(scheduler, 2, 1, priority=5)
    served = [sizes(step(scheduler))[0][0] for _ in range(3)]
    assert served == [urgent, first, second]


def run(scheduler: Scheduler) -> list[Sequence]:
    """Step until nothing is left to do; return the sequence of each token chosen, in order."""
    order = []
    while (batch := step(scheduler)) is not None:
        scheduler.check()
        order += [chunk.sequence for chunk in batch.chunks if chunk.samples]
    return order


def test_nobody_overtakes_one_that_waits_for_blocks() -> None:
    """Else a stream of small requests would keep a large one waiting for ever."""
    scheduler = make_scheduler(num_blocks=4)
    running, large, small = add(scheduler, 4, 2), add(scheduler, 12, 2), add(scheduler, 1, 1)
    assert run(scheduler) == [running, running, large, large, small]


def test_a_sequence_begins_with_its_prompts_blocks_and_takes_more_as_it_grows() -> None:
    scheduler = make_scheduler(num_blocks=16)
    sequence = add(scheduler, 5, 20)
    held = []
    while step(scheduler) is not None:
        held.append(scheduler.pool.num_used)
    assert held[:9] == [3] * 8 + [4]  # prompt 2, one to spare; the 13th token needs a fourth
    assert sequence.num_answer == 20
    assert max(held) == 6  # the last token chosen is never computed


def test_one_block_is_left_to_each_that_runs_when_another_begins() -> None:
    """Else whoever began would have to give way at once."""
    scheduler = make_scheduler(num_blocks=5)
    first, second = add(scheduler, 4, 9), add(scheduler, 4, 9)
    batch = step(scheduler)
    assert sizes(batch) == [(first, 4), (second, 4)]
    scheduler = make_scheduler(num_blocks=4)
    first, second = add(scheduler, 4, 9), add(scheduler, 4, 9)
    assert sizes(step(scheduler)) == [(first, 4)]


def test_when_blocks_run_out_the_last_in_line_gives_way_and_ends_later() -> None:
    scheduler = make_scheduler(num_blocks=6)
    urgent_later = [add(scheduler, 4, 12), add(scheduler, 4, 12), add(scheduler, 4, 12, priority=1)]
    first, second, urgent = urgent_later
    order = run(scheduler)
    assert [order.count(sequence) for sequence in urgent_later] == [12, 12, 12]
    ends = [max(place for place, each in enumerate(order) if each is sequence) for sequence in (urgent, first, second)]
    assert ends == sorted(ends)


def test_a_preempted_sequence_computes_its_answer_again_and_goes_on() -> None:
    scheduler = make_scheduler(num_blocks=5)
    first, second = add(scheduler, 4, 12), add(scheduler, 4, 9)
    batches = []
    while (batch := step(scheduler)) is not None:
        batches.append(batch)
    assert sum(batch.num_preempted for batch in batches) == 1
    again = [chunk for batch in batches for chunk in batch.chunks if chunk.sequence is second and chunk.start == 0]
    assert [len(chunk.token_ids) for chunk in again] == [4, 4 + 5]  # with the five tokens it had answered
    assert (first.num_answer, second.num_answer) == (12, 9)


def test_one_that_waits_for_its_prompt_gives_way_to_anyone() -> None:
    """A client that stalls must not keep the cache from the others."""
    scheduler = make_scheduler(num_blocks=4)
    idle = add(scheduler, 12, None, priority=5)
    step(scheduler)
    other = add(scheduler, 8, 4)
    assert sizes(step(scheduler)) == [(other, 8)]
    assert idle.blocks == []
    idle.max_tokens = 2
    assert run(scheduler) == [other] * 3 + [idle] * 2


def test_a_prefix_is_computed_once() -> None:
    scheduler = make_scheduler()
    first = add_named(scheduler, list(range(10)))
    run(scheduler)
    second, other = add_named(scheduler, list(range(9))), add_named(scheduler, list(range(9)), salt=b"other")
    batch = step(scheduler)
    assert sizes(batch) == [(second, 1), (other, 9)]
    assert batch is not None
    assert batch.num_found == 8
    assert (first.num_found, second.num_found, other.num_found) == (0, 8, 0)
    run(scheduler)


def test_the_last_token_is_computed_even_if_its_block_is_known() -> None:
    scheduler = make_scheduler()
    for expected in (8, 4):
        sequence = add_named(scheduler, list(range(8)))
        assert sizes(step(scheduler)) == [(sequence, expected)]
        run(scheduler)


def test_answers_are_found_as_part_of_the_next_question() -> None:
    scheduler = make_scheduler()
    sequence = add_named(scheduler, [7, 8, 9], max_tokens=6)
    run(scheduler)
    follow_up = add_named(scheduler, [*sequence.token_ids, 5, 6])
    assert sizes(step(scheduler)) == [(follow_up, 3)]  # eight of the nine were computed, the last one never
    run(scheduler)


def test_two_that_begin_together_compute_their_common_prefix_once() -> None:
    scheduler = make_scheduler(max_step_tokens=64)
    first, second = (add_named(scheduler, [*range(12), last]) for last in (20, 21))
    assert sizes(step(scheduler)) == [(first, 13)]
    assert sizes(step(scheduler)) == [(first, 1), (second, 1)]
    assert second.num_found == 12
    run(scheduler)


def test_a_later_segment_is_found_too() -> None:
    scheduler = make_scheduler()
    add_named(scheduler, list(range(14)))
    run(scheduler)
    sequence = add_named(scheduler, list(range(6)), max_tokens=None)
    assert sizes(step(scheduler)) == [(sequence, 2)]
    sequence.add_text([6, 7])  # the block that was begun is given up for the known one
    assert step(scheduler) is None
    assert (sequence.num_computed, sequence.num_found) == (8, 4 + 2)
    sequence.add_text(list(range(8, 13)))
    sequence.max_tokens = 2
    assert sizes(step(scheduler)) == [(sequence, 1)]
    assert sequence.num_found == 4 + 2 + 4
    run(scheduler)


def test_a_prompt_that_ends_where_all_is_found_computes_its_last_token() -> None:
    scheduler = make_scheduler()
    add_named(scheduler, list(range(14)))
    run(scheduler)
    sequence = add_named(scheduler, list(range(8)), max_tokens=None)
    assert step(scheduler) is None
    assert sequence.num_found == 8
    sequence.max_tokens = 2
    assert sizes(step(scheduler)) == [(sequence, 4)]
    assert sequence.num_found == 4  # what usage tells is what was not computed
    run(scheduler)


def test_a_block_with_other_readers_is_not_computed_again_in_place() -> None:
    """The last token runs again once the prompt has ended; its block may be another's by then."""
    scheduler = make_scheduler()
    first = add_named(scheduler, list(range(8)), max_tokens=None)
    step(scheduler)
    second = add_named(scheduler, list(range(9)))
    step(scheduler)
    assert second.blocks[:2] == first.blocks
    first.max_tokens = 2
    assert sizes(step(scheduler)) == [(second, 1), (first, 4)]
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]
    run(scheduler)


def test_shared_blocks_do_not_count_when_another_begins() -> None:
    """But the block of the last token, which is always computed, does."""
    for length, begins in ((9, True), (8, False)):
        scheduler = make_scheduler(num_blocks=5)
        first = add_named(scheduler, list(range(8)), max_tokens=9)
        step(scheduler)
        assert len(first.blocks) == 3
        second = add_named(scheduler, list(range(length)), max_tokens=2)  # 3 blocks, 2 or 1 of them shared
        step(scheduler)
        assert bool(second.blocks) == begins
        run(scheduler)


def test_what_a_failed_sequence_computed_is_not_found() -> None:
    scheduler = make_scheduler()
    failed = add_named(scheduler, list(range(9)))
    step(scheduler)
    scheduler.remove(failed, keep=False)
    assert scheduler.pool.num_kept == 0
    sequence = add_named(scheduler, list(range(9)))
    assert sizes(step(scheduler)) == [(sequence, 9)]
    run(scheduler)


def test_what_has_arrived_is_prefilled_before_the_prompt_ends() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, max_tokens=None)
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 6)]
    assert scheduler.pool.num_used == 2  # what is here, and nothing for an answer yet
    assert step(scheduler) is None
    sequence.add_text([0] * 5)
    assert sizes(step(scheduler)) == [(sequence, 5)]
    sequence.add_text([1])
    sequence.max_tokens = 2
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 1)]
    assert batch is not None
    assert batch.chunks[0].samples


def test_the_last_token_runs_again_if_the_prompt_ended_after_it() -> None:
    """Its logits choose the first token, and nobody knew when it ran."""
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, max_tokens=None)
    step(scheduler)
    sequence.max_tokens = 3
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 1)]
    assert batch is not None
    assert (batch.chunks[0].start, batch.chunks[0].samples) == (5, True)


def test_half_arrived_prompts_do_not_wait_for_each_other() -> None:
    """Two prompts hold all blocks and each needs more: the later one gives way and is prefilled again."""
    scheduler = make_scheduler(num_blocks=4)
    first, second = add(scheduler, 8, None), add(scheduler, 8, None)
    assert sizes(step(scheduler)) == [(first, 8), (second, 8)]
    for sequence in (first, second):
        sequence.add_text([1])
        sequence.max_tokens = 2
    order: list[Sequence] = []
    while (batch := step(scheduler)) is not None:
        scheduler.check()
        order += [chunk.sequence for chunk in batch.chunks if chunk.samples]
    assert order == [first, first, second, second]


def test_removing_frees_at_once_and_only_once() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6)
    batch = scheduler.next_batch()
    assert batch is not None
    scheduler.remove(sequence)
    assert scheduler.pool.num_used == 0
    scheduler.advance(batch.chunks[0])  # the step that held it ends
    scheduler.remove(sequence)
    scheduler.check()
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_fresh_blocks_are_named_once() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, 6)
    batch = step(scheduler)
    assert batch is not None
    assert batch.fresh_blocks == sequence.blocks
    batch = step(scheduler)
    assert batch is not None
    assert batch.fresh_blocks == []


def test_a_budget_that_decoding_could_eat_up_is_refused() -> None:
    with pytest.raises(ValueError, match="max_step_tokens 4"):
        make_scheduler(max_running=4, max_step_tokens=4)


def test_guesses_take_what_prefill_leaves_and_only_free_blocks() -> None:
    scheduler = make_scheduler(num_blocks=12, max_step_tokens=16, max_drafts=8)
    sequence = add_named(scheduler, [1, 2, 3, 1, 2, 3, 1, 2], max_tokens=9)
    step(scheduler)
    sequence.token_ids[-1] = 3  # goes on as before
    batch = scheduler.next_batch()
    assert batch is not None
    assert batch.chunks[0].token_ids == [3, 1, 2, 3, 1, 2, 3, 1]  # one more is chosen after them: nine in all
    assert batch.chunks[0].drafts == [1, 2, 3, 1, 2, 3, 1]
    scheduler.advance(batch.chunks[0], num_right=2)
    assert sequence.num_computed == 11
    for token in (1, 2, 9):
        sequence.add_answer(token)
    sequence.token_ids[-1] = 3
    other = add(scheduler, 14)
    batch = scheduler.next_batch()
    assert batch is not None
    assert [(chunk.sequence, len(chunk.token_ids)) for chunk in batch.chunks] == [(sequence, 2), (other, 14)]


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
def test_every_sequence_ends_and_reads_only_what_it_would_have_computed(
    prompts: list[tuple[list[list[int]], int, int]], max_drafts: int, seed: int, **limits: int
) -> None:
    """Segments arrive and requests are cancelled between steps, in any order, and many prompts begin alike."""
    scheduler = make_scheduler(**limits, max_drafts=max_drafts)
    Traffic(scheduler, random.Random(seed), prompts).run()


class Traffic:
    """Runs sequences to their end on a cache that remembers, for every slot, the tokens its content follows from."""

    def __init__(
        self, scheduler: Scheduler, chance: random.Random, prompts: list[tuple[list[list[int]], int, int]]
    ) -> None:
        self.scheduler, self.chance = scheduler, chance
        self.arriving = {}
        for segments, max_tokens, priority in prompts:
            sequence = add_named(scheduler, [], None)
            scheduler.remove(sequence)
            sequence.priority = priority
            scheduler.add(sequence)
            self.arriving[sequence] = (list(segments), max_tokens)
        self.alive = set(self.arriving)
        self.slots: dict[tuple[int, int], list[int]] = {}

    def run(self) -> None:
        for _ in range(2000):
            if not self.alive:
                break
            self._arrive()
            if self.chance.random() < 0.02:
                self._cancel(self.chance.choice(sorted(self.alive, key=id)))
            batch = self.scheduler.next_batch()
            self.scheduler.check()
            assert batch is not None or self.arriving or not self.alive, "everything has arrived and nothing runs"
            if batch is not None:
                self._compute(batch)
            self.scheduler.check()
        assert not self.alive
        assert self.scheduler.pool.num_used == 0

    def _compute(self, batch: Batch) -> None:
        assert self.scheduler.num_running <= self.scheduler.config.max_running
        assert sum(len(chunk.token_ids) for chunk in batch.chunks) <= self.scheduler.config.max_step_tokens
        decoding = {sequence for sequence in self.alive if sequence.decoding and sequence.blocks}
        assert decoding <= {chunk.sequence for chunk in batch.chunks}, "a decoding sequence waited"
        self.slots = {slot: known for slot, known in self.slots.items() if slot[0] not in batch.fresh_blocks}
        written = [
            (chunk, position, (chunk.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE))
            for chunk in batch.chunks
            for position in range(chunk.start, chunk.end)
        ]
        for chunk, position, slot in written:
            assert sum(slot[0] in sequence.blocks for sequence in self.alive) == 1, "others read what is written"
            self.slots[slot] = self._tokens(chunk)[: position + 1]
        for chunk in batch.chunks:
            for position in range(chunk.end):
                slot = (chunk.blocks[position // BLOCK_SIZE], position % BLOCK_SIZE)
                assert self.slots[slot] == self._tokens(chunk)[: position + 1]
            self._advance(chunk)

    def _tokens(self, chunk: Chunk) -> list[int]:
        """Return the tokens up to the chunk's end, its guesses among them."""
        return [*chunk.sequence.token_ids[: chunk.start], *chunk.token_ids]

    def _advance(self, chunk: Chunk) -> None:
        sequence = chunk.sequence
        answer = [self.chance.randrange(2) for _ in range(1 + chunk.num_drafts)] if chunk.samples else []
        num_right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chunk.drafts, answer, strict=False)))
        self.scheduler.advance(chunk, num_right)
        assert sequence.num_found <= max(sequence.num_prompt - 1, 0)
        for token in answer[: num_right + 1]:
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
            if self.chance.random() < 0.5:
                continue
            if segments:
                sequence.add_text(segments.pop(0))
            else:
                sequence.max_tokens = max_tokens
                del self.arriving[sequence]
