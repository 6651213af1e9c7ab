"""Drafts take what is left of a step."""

from language_service.scheduling.scheduler import Batch, Scheduler
from language_service.scheduling.sequence import Sequence
from tests.language_service.stepping import BLOCK_SIZE, add, add_shared, make_scheduler, run, sizes, step


def next_batch(scheduler: Scheduler) -> Batch:
    batch = scheduler.next_batch()
    assert batch is not None
    return batch


def accept(scheduler: Scheduler, batch: Batch, sequence: Sequence, num_accepted: int) -> None:
    """Record the chunk of a sequence, and one more token."""
    (chunk,) = (chunk for chunk in batch.chunks if chunk.sequence is sequence)
    scheduler.advance(chunk, num_accepted)
    for token in [*chunk.drafts[:num_accepted], 9]:
        sequence.add_answer(token)


def test_forced_tokens_take_only_tokens_and_blocks_that_are_left() -> None:
    scheduler = make_scheduler(num_blocks=12, max_step_tokens=16)
    sequence = add_shared(scheduler, [1, 2, 3, 4, 5], max_tokens=9)
    sequence.forced = list(range(20, 40))
    batch = next_batch(scheduler)
    assert batch.chunks[0].token_ids == [1, 2, 3, 4, 5, *range(20, 28)]  # with the one chosen after them, nine in all
    assert (batch.chunks[0].num_drafts, batch.chunks[0].is_forced) == (8, True)
    accept(scheduler, batch, sequence, 2)
    assert (sequence.num_computed, sequence.num_answer, len(sequence.blocks)) == (7, 3, 2)
    other = add(scheduler, 14)
    assert sizes(next_batch(scheduler)) == [(sequence, 1 + 1), (other, 14)]


def test_forced_tokens_preempt_nobody() -> None:
    scheduler = make_scheduler(num_blocks=5)
    sequence, other = add_shared(scheduler, [1, 2, 3], max_tokens=20), add_shared(scheduler, [4, 5, 6], max_tokens=4)
    sequence.forced = list(range(20, 40))
    batch = next_batch(scheduler)
    assert sizes(batch) == [(sequence, 2 * BLOCK_SIZE), (other, 3)]
    assert batch.num_preempted == 0


def test_a_chunk_that_chooses_no_token_has_no_drafts() -> None:
    """A forced token follows the whole prompt."""
    scheduler = make_scheduler(max_step_tokens=8)
    sequence = add_shared(scheduler, list(range(11)), max_tokens=9)
    sequence.forced = [20, 21]
    batch = next_batch(scheduler)
    assert sizes(batch) == [(sequence, 8)]
    scheduler.advance(batch.chunks[0])
    assert next_batch(scheduler).chunks[0].token_ids == [8, 9, 10, 20, 21]


def test_without_jump_ahead_forced_tokens_are_no_drafts() -> None:
    scheduler = make_scheduler(jump_ahead=False)
    sequence = add_shared(scheduler, [1, 2, 3], max_tokens=9)
    sequence.forced = [20, 21]
    assert sizes(next_batch(scheduler)) == [(sequence, 3)]


def test_rejected_drafts_free_their_blocks() -> None:
    """Without drafts, there are enough blocks for both sequences."""
    scheduler = make_scheduler(num_blocks=7)
    drafting, growing = add_shared(scheduler, [1] * 8, max_tokens=12), add(scheduler, 4, 9)
    drafting.forced = [9] * 8
    num_drafts = 0
    while growing.num_answer < 9:
        batch = step(scheduler)
        assert batch is not None
        assert batch.num_preempted == 0
        num_drafts += sum(chunk.num_drafts for chunk in batch.chunks)
    assert num_drafts > 8
    run(scheduler)
    assert drafting.num_answer == 12


def test_ngram_drafts_are_only_in_small_steps() -> None:
    """Larger ones take longer with each token."""
    scheduler = make_scheduler(max_running=12, max_step_tokens=32, max_drafts=8, num_blocks=64)
    sequence = add_shared(scheduler, [1, 2, 3, 1, 2, 3], max_tokens=40)
    assert sequence.drafter is not None
    for _ in range(3):
        sequence.drafter.learn(1, 1)  # its drafts are long
    num_drafts = []
    for _ in range(9):
        batch = next_batch(scheduler)
        num_drafts.append(batch.chunks[0].num_drafts)
        for chunk in batch.chunks:
            scheduler.advance(chunk, chunk.num_drafts)
            for token in [*chunk.drafts, 1 + chunk.end % 3]:
                chunk.sequence.add_answer(token)
        add(scheduler, 3, 20)
    assert num_drafts == [2, 4, 3, 2, 1, 0, 0, 0, 0]
