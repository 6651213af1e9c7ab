"""The scheduler's policy on what was computed before: found once, shared while read, never written under a reader."""

from tests.language_service.stepping import add, add_named, make_scheduler, run, sizes, step


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


def test_who_waits_for_a_common_prefix_leaves_its_part_of_the_step_to_who_computes_it() -> None:
    scheduler = make_scheduler(max_step_tokens=8)
    first, second = (add_named(scheduler, [*range(20), last], 1) for last in (20, 21))
    assert [sizes(step(scheduler)) for _ in range(3)] == [[(first, 8)], [(first, 8)], [(first, 5)]]
    assert sizes(step(scheduler)) == [(second, 1)]
    assert second.num_found == 20


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


def test_what_is_computed_after_giving_way_was_not_found() -> None:
    """Its prompt ends while it holds nothing, so nothing told that the last block must be its own."""
    scheduler = make_scheduler(max_running=1)
    add_named(scheduler, list(range(8)), 1)
    run(scheduler)
    idle = add_named(scheduler, list(range(8)), None)
    assert step(scheduler) is None
    assert idle.num_found == 8
    other = add(scheduler, 2, 2)
    assert sizes(step(scheduler)) == [(other, 2)]
    idle.max_tokens = 1
    assert run(scheduler) == [other, idle]
    assert idle.num_found == 4


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
