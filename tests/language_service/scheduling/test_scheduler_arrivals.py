"""The scheduling policy for prompts that arrive in segments."""

from tests.language_service.stepping import add, add_shared, make_scheduler, run, sizes, step


def test_a_stalled_prompt_is_preempted_to_admit_any_other() -> None:
    """A client that stalls must not block the cache."""
    scheduler = make_scheduler(num_blocks=4)
    stalled = add(scheduler, 12, None, priority=5)
    step(scheduler)
    other = add(scheduler, 8, 4)
    assert sizes(step(scheduler)) == [(other, 8)]
    assert stalled.blocks == []
    stalled.max_tokens = 2
    assert run(scheduler) == [other] * 3 + [stalled] * 2


def test_the_arrived_part_of_a_prompt_is_prefilled_before_it_ends() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, max_tokens=None)
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 6)]
    assert scheduler.pool.num_used == 2  # for the arrived part, none for an answer yet
    assert step(scheduler) is None
    sequence.add_text([0] * 5)
    assert sizes(step(scheduler)) == [(sequence, 5)]
    sequence.add_text([1])
    sequence.max_tokens = 2
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 1)]
    assert batch is not None
    assert batch.chunks[0].samples


def test_the_last_token_is_computed_again_if_the_prompt_ends_after_it() -> None:
    """Its logits choose the next token, but were dropped."""
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, max_tokens=None)
    step(scheduler)
    sequence.max_tokens = 3
    batch = step(scheduler)
    assert sizes(batch) == [(sequence, 1)]
    assert batch is not None
    assert (batch.chunks[0].start, batch.chunks[0].samples) == (5, True)


def test_incomplete_prompts_do_not_deadlock() -> None:
    """Two prompts use all blocks and both need more.

    The later one is preempted and prefilled again.
    """
    scheduler = make_scheduler(num_blocks=4)
    first, second = add(scheduler, 8, None), add(scheduler, 8, None)
    assert sizes(step(scheduler)) == [(first, 8), (second, 8)]
    for sequence in (first, second):
        sequence.add_text([1])
        sequence.max_tokens = 2
    assert run(scheduler) == [first, first, second, second]


def test_a_stalled_prompt_is_preempted_before_a_sequence_that_grows() -> None:
    """Also if it comes first in the order."""
    scheduler = make_scheduler(num_blocks=4)
    stalled = add(scheduler, 4, None)
    step(scheduler)
    growing = add(scheduler, 4, 12)
    batches = []
    while (batch := step(scheduler)) is not None:
        batches.append(batch)
    assert [batch.num_preempted for batch in batches].count(1) == 1
    computed = [len(chunk.token_ids) for batch in batches for chunk in batch.chunks if chunk.sequence is growing]
    assert computed == [4] + [1] * 11
    stalled.max_tokens = 2
    assert run(scheduler) == [stalled] * 2


def test_a_stalled_prompt_gives_its_slot_to_others() -> None:
    """Otherwise `max_running` stalled clients would stop the engine."""
    scheduler = make_scheduler(max_running=1)
    stalled = add(scheduler, 6, None)
    step(scheduler)
    second, third = add(scheduler, 2, 2), add(scheduler, 2, 1)
    assert run(scheduler) == [second, second, third]
    stalled.max_tokens = 1
    assert run(scheduler) == [stalled]


def test_stalled_prompts_do_not_preempt_each_other() -> None:
    """Each would be computed again and again, only to stall."""
    scheduler = make_scheduler(max_running=1)
    first, second = add(scheduler, 6, None), add(scheduler, 3, None)
    assert sizes(step(scheduler)) == [(first, 6)]
    assert step(scheduler) is None
    text = add(scheduler, 2, 2)  # the incomplete prompt before it does not block it
    assert run(scheduler) == [text, text]
    for sequence in (second, first):
        sequence.max_tokens = 1
        assert run(scheduler) == [sequence]


def test_no_sequence_is_preempted_for_one_that_still_could_not_start() -> None:
    """It would compute its prompt again and again for nothing."""
    scheduler = make_scheduler(num_blocks=5)
    stalled, growing = add(scheduler, 4, None), add(scheduler, 4, 5)
    step(scheduler)
    large = add(scheduler, 16, 1)
    batches = []
    while growing.num_answer < 5:
        batches.append(step(scheduler))
        assert stalled.blocks
    assert [batch.num_preempted for batch in batches if batch] == [0] * 4
    assert run(scheduler) == [large]


def test_shared_blocks_count_once_when_preemption_is_considered() -> None:
    """Otherwise every step would preempt their owners for nothing."""
    scheduler = make_scheduler(num_blocks=7)
    stalled = [add_shared(scheduler, [*range(8), last], None) for last in (20, 21)]
    growing = add(scheduler, 4, 5)
    while any(sequence.num_pending for sequence in stalled):
        step(scheduler)
    assert stalled[0].blocks[:2] == stalled[1].blocks[:2]
    large = add(scheduler, 16, 1)
    while growing.num_answer < 5:
        batch = step(scheduler)
        assert batch is not None
        assert batch.num_preempted == 0
    assert run(scheduler) == [large]


def test_a_paused_sequence_keeps_its_blocks_and_computes_its_last_token_again() -> None:
    """Its constraint was late, so no token was chosen."""
    scheduler = make_scheduler()
    late, other = add(scheduler, 6, 3), add(scheduler, 2, 6)
    batch = scheduler.next_batch()
    assert sizes(batch) == [(late, 6), (other, 2)]
    assert batch is not None
    scheduler.drop_last(batch.chunks[0])
    scheduler.advance(batch.chunks[1])
    other.add_answer(1)
    late.is_paused = True
    assert sizes(step(scheduler)) == [(other, 1)]
    assert len(late.blocks) == 3
    late.is_paused = False
    assert sizes(step(scheduler)) == [(other, 1), (late, 1)]
    assert run(scheduler).count(late) == 2


def test_paused_sequences_give_their_slots_to_others() -> None:
    """Otherwise costly constraints would keep all others waiting."""
    scheduler = make_scheduler(max_running=1)
    paused = add(scheduler, 6, 3)
    step(scheduler)
    paused.is_paused = True
    other, last = add(scheduler, 2, 2), add(scheduler, 2, 1)
    assert run(scheduler) == [other, other, last]
    paused.is_paused = False
    assert run(scheduler) == [paused, paused]
