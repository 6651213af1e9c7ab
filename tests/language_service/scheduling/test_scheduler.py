"""The scheduling policy: order, tokens, blocks and preemption."""

import pytest

from tests.language_service.stepping import add, make_scheduler, run, sizes, step


def test_decoding_goes_first_and_a_long_prompt_is_cut_to_the_budget() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    short = add(scheduler, 3)
    long = add(scheduler, 20)
    assert sizes(step(scheduler)) == [(short, 3), (long, 5)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 7)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 7)]
    assert sizes(step(scheduler)) == [(short, 1), (long, 1)]


def test_a_long_prompt_does_not_block_the_short_ones_behind_it() -> None:
    """It gets half of the prefill budget.

    The rest goes to the prompt with the fewest pending tokens.
    """
    scheduler = make_scheduler(max_step_tokens=8)
    first, long, short = add(scheduler, 40), add(scheduler, 30), add(scheduler, 6, 1)
    assert sizes(step(scheduler)) == [(first, 4), (short, 4)]
    assert sizes(step(scheduler)) == [(first, 4), (short, 2), (long, 2)]
    shorter = add(scheduler, 1, 1)
    assert sizes(step(scheduler)) == [(first, 4), (shorter, 1), (long, 3)]
    assert sizes(step(scheduler)) == [(first, 4), (long, 4)]


def test_a_lower_priority_gets_only_tokens_that_the_first_prompt_leaves() -> None:
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


def test_a_sequence_that_waits_for_blocks_is_not_overtaken() -> None:
    """Otherwise small requests would starve a large one."""
    scheduler = make_scheduler(num_blocks=4)
    running, large, small = add(scheduler, 4, 2), add(scheduler, 12, 2), add(scheduler, 1, 1)
    assert run(scheduler) == [running, running, large, large, small]


def test_a_sequence_starts_with_blocks_for_its_prompt_and_takes_more_as_it_grows() -> None:
    scheduler = make_scheduler(num_blocks=16)
    sequence = add(scheduler, 5, 20)
    num_used = []
    while step(scheduler) is not None:
        num_used.append(scheduler.pool.num_used)
    assert num_used[:9] == [3] * 8 + [4]  # two for the prompt, and one more. The 13th token needs a fourth.
    assert sequence.num_answer == 20
    assert max(num_used) == 6  # the token chosen last is never computed


def test_admission_leaves_one_block_for_each_running_sequence() -> None:
    """Otherwise the admitted sequence would be preempted at once."""
    scheduler = make_scheduler(num_blocks=5)
    first, second = add(scheduler, 4, 9), add(scheduler, 4, 9)
    batch = step(scheduler)
    assert sizes(batch) == [(first, 4), (second, 4)]
    scheduler = make_scheduler(num_blocks=4)
    first, second = add(scheduler, 4, 9), add(scheduler, 4, 9)
    assert sizes(step(scheduler)) == [(first, 4)]


def test_when_blocks_run_out_the_last_sequence_is_preempted_and_finishes_later() -> None:
    scheduler = make_scheduler(num_blocks=6)
    sequences = [add(scheduler, 4, 12), add(scheduler, 4, 12), add(scheduler, 4, 12, priority=1)]
    first, second, urgent = sequences
    order = run(scheduler)
    assert [order.count(sequence) for sequence in sequences] == [12, 12, 12]
    ends = [max(place for place, each in enumerate(order) if each is sequence) for sequence in (urgent, first, second)]
    assert ends == sorted(ends)


def test_a_preempted_sequence_computes_its_answer_again_and_continues() -> None:
    scheduler = make_scheduler(num_blocks=5)
    first, second = add(scheduler, 4, 12), add(scheduler, 4, 9)
    batches = []
    while (batch := step(scheduler)) is not None:
        batches.append(batch)
    assert sum(batch.num_preempted for batch in batches) == 1
    again = [chunk for batch in batches for chunk in batch.chunks if chunk.sequence is second and chunk.start == 0]
    assert [len(chunk.token_ids) for chunk in again] == [4, 4 + 5]  # with five tokens of its answer
    assert (first.num_answer, second.num_answer) == (12, 9)


def test_removing_frees_blocks_at_once_and_only_once() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6)
    batch = scheduler.next_batch()
    assert batch is not None
    scheduler.remove(sequence)
    assert scheduler.pool.num_used == 0
    scheduler.advance(batch.chunks[0])  # the step that computed it ends
    scheduler.remove(sequence)
    scheduler.check()
    assert scheduler.num_running == scheduler.num_waiting == 0


def test_fresh_blocks_are_reported_once() -> None:
    scheduler = make_scheduler()
    sequence = add(scheduler, 6, 6)
    batch = step(scheduler)
    assert batch is not None
    assert batch.fresh_blocks == sequence.blocks
    batch = step(scheduler)
    assert batch is not None
    assert batch.fresh_blocks == []


def test_a_step_budget_without_tokens_for_prefill_is_refused() -> None:
    with pytest.raises(ValueError, match="max_step_tokens 4"):
        make_scheduler(max_running=4, max_step_tokens=4)
