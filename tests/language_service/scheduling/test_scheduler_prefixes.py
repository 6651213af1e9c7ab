"""The scheduling policy for the prefix cache."""

from tests.language_service.stepping import add, add_shared, make_scheduler, run, sizes, step


def test_a_prefix_is_computed_once() -> None:
    scheduler = make_scheduler()
    first = add_shared(scheduler, list(range(10)))
    run(scheduler)
    second, other = add_shared(scheduler, list(range(9))), add_shared(scheduler, list(range(9)), salt=b"other")
    batch = step(scheduler)
    assert sizes(batch) == [(second, 1), (other, 9)]
    assert batch is not None
    assert batch.num_cached_tokens == 8
    assert (first.num_cached_tokens, second.num_cached_tokens, other.num_cached_tokens) == (0, 8, 0)
    run(scheduler)


def test_the_last_token_is_computed_even_if_its_block_is_cached() -> None:
    scheduler = make_scheduler()
    for expected in (8, 4):
        sequence = add_shared(scheduler, list(range(8)))
        assert sizes(step(scheduler)) == [(sequence, expected)]
        run(scheduler)


def test_answers_are_cache_hits_of_the_next_question() -> None:
    scheduler = make_scheduler()
    sequence = add_shared(scheduler, [7, 8, 9], max_tokens=6)
    run(scheduler)
    follow_up = add_shared(scheduler, [*sequence.token_ids, 5, 6])
    assert sizes(step(scheduler)) == [(follow_up, 3)]  # eight of the nine were computed, not the last one
    run(scheduler)


def test_two_sequences_that_start_together_compute_their_common_prefix_once() -> None:
    scheduler = make_scheduler(max_step_tokens=64)
    first, second = (add_shared(scheduler, [*range(12), last]) for last in (20, 21))
    assert sizes(step(scheduler)) == [(first, 13)]
    assert sizes(step(scheduler)) == [(first, 1), (second, 1)]
    assert second.num_cached_tokens == 12
    run(scheduler)


def test_a_sequence_that_waits_for_a_common_prefix_leaves_its_tokens_to_the_other() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    first, second = (add_shared(scheduler, [*range(20), last], 1) for last in (20, 21))
    assert [sizes(step(scheduler)) for _ in range(3)] == [[(first, 8)], [(first, 8)], [(first, 5)]]
    assert sizes(step(scheduler)) == [(second, 1)]
    assert second.num_cached_tokens == 20


def test_a_later_segment_is_a_cache_hit_too() -> None:
    scheduler = make_scheduler()
    add_shared(scheduler, list(range(14)))
    run(scheduler)
    sequence = add_shared(scheduler, list(range(6)), max_tokens=None)
    assert sizes(step(scheduler)) == [(sequence, 2)]
    sequence.add_text([6, 7])  # the cached block replaces the one just started
    assert step(scheduler) is None
    assert (sequence.num_computed, sequence.num_cached_tokens) == (8, 4 + 2)
    sequence.add_text(list(range(8, 13)))
    sequence.max_tokens = 2
    assert sizes(step(scheduler)) == [(sequence, 1)]
    assert sequence.num_cached_tokens == 4 + 2 + 4
    run(scheduler)


def test_a_fully_cached_prompt_computes_its_last_block() -> None:
    scheduler = make_scheduler()
    add_shared(scheduler, list(range(14)))
    run(scheduler)
    sequence = add_shared(scheduler, list(range(8)), max_tokens=None)
    assert step(scheduler) is None
    assert sequence.num_cached_tokens == 8
    sequence.max_tokens = 2
    assert sizes(step(scheduler)) == [(sequence, 4)]
    assert sequence.num_cached_tokens == 4  # usage counts only tokens that were not computed
    run(scheduler)


def test_tokens_computed_after_a_preemption_are_no_cache_hits() -> None:
    """The prompt ends while the sequence has no blocks.

    Its last block was a cache hit, but is computed now.
    """
    scheduler = make_scheduler(max_running=1)
    add_shared(scheduler, list(range(8)), 1)
    run(scheduler)
    stalled = add_shared(scheduler, list(range(8)), None)
    assert step(scheduler) is None
    assert stalled.num_cached_tokens == 8
    other = add(scheduler, 2, 2)
    assert sizes(step(scheduler)) == [(other, 2)]
    stalled.max_tokens = 1
    assert run(scheduler) == [other, stalled]
    assert stalled.num_cached_tokens == 4


def test_a_shared_block_is_never_written_again() -> None:
    """The last token is computed again after the prompt ends.

    Another sequence may share its block by then.
    """
    scheduler = make_scheduler()
    first = add_shared(scheduler, list(range(8)), max_tokens=None)
    step(scheduler)
    second = add_shared(scheduler, list(range(9)))
    step(scheduler)
    assert second.blocks[:2] == first.blocks
    first.max_tokens = 2
    assert sizes(step(scheduler)) == [(second, 1), (first, 4)]
    assert second.blocks[0] == first.blocks[0]
    assert second.blocks[1] != first.blocks[1]
    run(scheduler)


def test_admission_needs_no_new_blocks_for_shared_ones() -> None:
    """But the last token is always computed."""
    for length, starts in ((9, True), (8, False)):
        scheduler = make_scheduler(num_blocks=5)
        first = add_shared(scheduler, list(range(8)), max_tokens=9)
        step(scheduler)
        assert len(first.blocks) == 3
        second = add_shared(scheduler, list(range(length)), max_tokens=2)  # 3 blocks, 2 or 1 of them shared
        step(scheduler)
        assert bool(second.blocks) == starts
        run(scheduler)


def test_a_preempted_sequence_found_in_the_cache_decodes_at_once() -> None:
    """A step spends its prefill budget on others."""
    scheduler = make_scheduler(max_running=2, max_step_tokens=8)
    preempted = add_shared(scheduler, list(range(8)))
    step(scheduler)
    preempted.is_paused = True
    first, other = add(scheduler, 20, priority=1), add(scheduler, 4)
    assert sizes(step(scheduler)) == [(first, 8)]
    assert not preempted.blocks
    scheduler.remove(other)
    preempted.is_paused = False
    assert sizes(step(scheduler)) == [(preempted, 1), (first, 7)]
    run(scheduler)


def test_blocks_of_a_failed_sequence_are_not_reused() -> None:
    scheduler = make_scheduler()
    failed = add_shared(scheduler, list(range(9)))
    step(scheduler)
    scheduler.remove(failed, reusable=False)
    assert scheduler.pool.num_evictable == 0
    sequence = add_shared(scheduler, list(range(9)))
    assert sizes(step(scheduler)) == [(sequence, 9)]
    run(scheduler)
