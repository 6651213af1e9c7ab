"""The scheduler's policy, stepped by hand and at random; no tensor is computed."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from language_service.cache.blocks import BlockPool
from language_service.scheduling.scheduler import Batch, Scheduler, SchedulerConfig
from language_service.scheduling.sequence import Sequence

BLOCK_SIZE = 4


def make_scheduler(
    *, num_blocks: int = 32, max_running: int = 4, max_waiting: int = 16, max_step_tokens: int = 16
) -> Scheduler:
    config = SchedulerConfig(
        block_size=BLOCK_SIZE, max_running=max_running, max_waiting=max_waiting, max_step_tokens=max_step_tokens
    )
    return Scheduler(config, BlockPool(num_blocks))


def add(scheduler: Scheduler, num_prompt: int, max_tokens: int | None = 4, priority: int = 0) -> Sequence:
    sequence = Sequence(priority=priority)
    sequence.extend_prompt([1] * num_prompt)
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
            chunk.sequence.token_ids.append(1)
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


def test_nobody_overtakes_one_that_waits_for_blocks() -> None:
    """Else a stream of small requests would keep a large one waiting for ever."""
    scheduler = make_scheduler(num_blocks=4)
    running, large, small = add(scheduler, 4, 2), add(scheduler, 8, 8), add(scheduler, 1, 1)
    assert sizes(step(scheduler)) == [(running, 4)]
    assert sizes(step(scheduler)) == [(running, 1)]
    assert sizes(step(scheduler)) == [(large, 8)]
    assert small.num_computed == 0


def test_blocks_for_the_whole_answer_are_taken_at_once_or_not_at_all() -> None:
    scheduler = make_scheduler(num_blocks=4)
    add(scheduler, 5, 4)
    step(scheduler)
    assert scheduler.pool.num_used == 3
    waiting = add(scheduler, 5, 4)
    step(scheduler)
    assert waiting.blocks == []
    assert scheduler.pool.num_used == 3


def test_what_has_arrived_is_prefilled_before_the_prompt_ends() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, max_tokens=None)
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 6)]
    assert scheduler.pool.num_used == 2  # what is here, and nothing for an answer yet
    assert step(scheduler) is None
    sequence.extend_prompt([0] * 5)
    assert sizes(step(scheduler)) == [(sequence, 5)]
    sequence.extend_prompt([1])
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
        sequence.extend_prompt([1])
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


@settings(max_examples=150, deadline=None)
@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=4), st.integers(1, 8), st.integers(-1, 1)),
        min_size=1,
        max_size=10,
    ),
    num_blocks=st.integers(14, 40),
    max_running=st.integers(1, 5),
    max_step_tokens=st.integers(6, 20),
    seed=st.integers(0, 2**32),
)
def test_every_sequence_ends_and_every_step_keeps_the_rules(
    prompts: list[tuple[list[int], int, int]], num_blocks: int, max_running: int, max_step_tokens: int, seed: int
) -> None:
    """Segments arrive and requests are cancelled between steps, in any order."""
    chance = random.Random(seed)
    scheduler = make_scheduler(num_blocks=num_blocks, max_running=max_running, max_step_tokens=max_step_tokens)
    arriving = {add(scheduler, 0, None, priority): (list(segments), answer) for segments, answer, priority in prompts}
    alive = set(arriving)
    for _ in range(2000):
        if not alive:
            break
        _arrive(arriving, chance)
        if chance.random() < 0.02:
            cancelled = chance.choice(sorted(alive, key=id))
            scheduler.remove(cancelled)
            arriving.pop(cancelled, None)
            alive.remove(cancelled)
        decoding = {sequence for sequence in alive if sequence.decoding}
        batch = step(scheduler)
        scheduler.check()
        assert scheduler.num_running <= max_running
        if batch is not None:
            assert sum(len(chunk.token_ids) for chunk in batch.chunks) <= max_step_tokens
            assert decoding <= {chunk.sequence for chunk in batch.chunks}, "a decoding sequence waited"
            for chunk in batch.chunks:
                assert len(chunk.blocks) * BLOCK_SIZE >= chunk.end
        alive -= {sequence for sequence in alive if sequence.num_answer == sequence.max_tokens}
        assert batch is not None or arriving or not alive, "everything has arrived and nothing runs"
    assert not alive
    assert scheduler.pool.num_used == 0


def _arrive(arriving: dict[Sequence, tuple[list[int], int]], chance: random.Random) -> None:
    for sequence, (segments, answer) in list(arriving.items()):
        if chance.random() < 0.5:
            continue
        if segments:
            sequence.extend_prompt([1] * segments.pop())
        else:
            sequence.max_tokens = answer
            del arriving[sequence]
