"""The scheduler's policy, stepped by hand: who runs next, who gives way, and with how many tokens and blocks."""

import pytest

from tests.language_service.stepping import add, add_named, make_scheduler, run, sizes, step


def test_a_long_prompt_is_cut_to_the_budget_and_decodes_go_first() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    short = add(scheduler, 3)
    long = add(scheduler, 20)
    assert sizes(step(scheduler)) == [(short, 3), (long, 5)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 7)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 7)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 1)]


def test_a_long_prompt_does_not_block_the_short_ones_behind_it() -> None:
    """It is sure of half of what decoding leaves; the rest goes to whoever has the least to compute."""
    scheduler = make_scheduler(max_step_tokens=8)
    first, long, short = add(scheduler, 40), add(scheduler, 30), add(scheduler, 6, 1)
    assert sizes(step(scheduler)) == [(first, 4), (short, 4)]
    assert sizes(step(scheduler)) == [(first, 4), (short, 2), (long, 2)]
    shorter = add(scheduler, 1, 1)
    assert sizes(step(scheduler)) == [(first, 4), (shorter, 1), (long, 3)]
    assert sizes(step(scheduler)) == [(first, 4), (long, 4)]


def test_a_long_prompt_shares_a_step_with_nobody_of_a_smaller_priority() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    short, urgent = add(scheduler, 2, 1), add(scheduler, 12, 1, priority=1)
    assert sizes(step(scheduler)) == [(urgent, 8)]
    assert sizes(step(scheduler)) == [(urgent, 4), (short, 2)]


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


def test_guesses_that_were_wrong_keep_no_blocks_from_anyone() -> None:
    """There are enough for both as they grow token by token."""
    scheduler = make_scheduler(num_blocks=7, max_drafts=8)
    guessing, growing = add_named(scheduler, [1] * 8, max_tokens=12), add(scheduler, 4, 9)
    num_drafts = 0
    while growing.num_answer < 9:
        batch = step(scheduler)
        assert batch is not None
        assert batch.num_preempted == 0
        num_drafts += sum(chunk.num_drafts for chunk in batch.chunks)
    assert num_drafts > 8
    run(scheduler)
    assert guessing.num_answer == 12
