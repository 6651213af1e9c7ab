"""The scheduler's policy on prompts that arrive piece by piece."""

from tests.language_service.stepping import add, add_named, make_scheduler, run, sizes, step


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
    assert run(scheduler) == [first, first, second, second]


def test_one_that_waits_for_its_prompt_gives_way_to_one_that_grows() -> None:
    """Whatever its place: the other would compute again what it has for somebody who does nothing with his blocks."""
    scheduler = make_scheduler(num_blocks=4)
    idle = add(scheduler, 4, None)
    step(scheduler)
    growing = add(scheduler, 4, 12)
    batches = []
    while (batch := step(scheduler)) is not None:
        batches.append(batch)
    assert [batch.num_preempted for batch in batches].count(1) == 1
    computed = [len(chunk.token_ids) for batch in batches for chunk in batch.chunks if chunk.sequence is growing]
    assert computed == [4] + [1] * 11
    idle.max_tokens = 2
    assert run(scheduler) == [idle] * 2


def test_one_that_waits_for_its_prompt_keeps_no_place_from_others() -> None:
    """Else as many clients that stall as there are places would stop everybody."""
    scheduler = make_scheduler(max_running=1)
    idle = add(scheduler, 6, None)
    step(scheduler)
    second, third = add(scheduler, 2, 2), add(scheduler, 2, 1)
    assert run(scheduler) == [second, second, third]
    idle.max_tokens = 1
    assert run(scheduler) == [idle]


def test_prompts_that_all_wait_do_not_take_turns() -> None:
    """Each would be computed again and again, only to wait."""
    scheduler = make_scheduler(max_running=1)
    first, second = add(scheduler, 6, None), add(scheduler, 3, None)
    assert sizes(step(scheduler)) == [(first, 6)]
    assert step(scheduler) is None
    text = add(scheduler, 2, 2)  # behind one that cannot begin yet, and not held up by it
    assert run(scheduler) == [text, text]
    for sequence in (second, first):
        sequence.max_tokens = 1
        assert run(scheduler) == [sequence]


def test_nobody_gives_way_for_one_that_could_not_begin_all_the_same() -> None:
    """It would compute its prompt again and again, for nothing."""
    scheduler = make_scheduler(num_blocks=5)
    idle, growing = add(scheduler, 4, None), add(scheduler, 4, 5)
    step(scheduler)
    large = add(scheduler, 16, 1)
    batches = []
    while growing.num_answer < 5:
        batches.append(step(scheduler))
        assert idle.blocks
    assert [batch.num_preempted for batch in batches if batch] == [0] * 4
    assert run(scheduler) == [large]


def test_blocks_that_several_hold_are_given_back_once() -> None:
    """Else those that share them would give way in each step to one that cannot begin all the same."""
    scheduler = make_scheduler(num_blocks=7)
    idle = [add_named(scheduler, [*range(8), last], None) for last in (20, 21)]
    growing = add(scheduler, 4, 5)
    while any(sequence.num_pending for sequence in idle):
        step(scheduler)
    assert idle[0].blocks[:2] == idle[1].blocks[:2]
    large = add(scheduler, 16, 1)
    while growing.num_answer < 5:
        batch = step(scheduler)
        assert batch is not None
        assert batch.num_preempted == 0
    assert run(scheduler) == [large]
