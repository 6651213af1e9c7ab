"""The scheduling policy for sequences in the background."""

from language_service.scheduling.scheduler import Scheduler
from language_service.scheduling.sequence import Sequence
from tests.language_service.stepping import BLOCK_SIZE, add, add_shared, make_scheduler, run, sizes, step


def add_in_background(scheduler: Scheduler, num_prompt: int, priority: int = 1) -> Sequence:
    sequence = add(scheduler, num_prompt, priority=priority)
    sequence.is_background = True
    return sequence


def test_beside_others_a_prompt_in_the_background_gets_one_block_a_step() -> None:
    """Else the others would wait for all of it."""
    scheduler = make_scheduler()
    user = add(scheduler, 3)
    step(scheduler)
    probe = add_in_background(scheduler, 10)
    assert sizes(step(scheduler)) == [(user, 1), (probe, BLOCK_SIZE)]
    prompt = add(scheduler, 20)
    assert sizes(step(scheduler)) == [(user, 1), (prompt, 15 - BLOCK_SIZE), (probe, BLOCK_SIZE)]


def test_all_prompts_in_the_background_share_that_block() -> None:
    scheduler = make_scheduler()
    user = add(scheduler, 3)
    step(scheduler)
    first, second = add_in_background(scheduler, 6), add_in_background(scheduler, 5)
    assert sizes(step(scheduler)) == [(user, 1), (first, BLOCK_SIZE)]
    assert sizes(step(scheduler)) == [(user, 1), (first, 2)]
    assert sizes(step(scheduler)) == [(first, 1), (user, 1), (second, BLOCK_SIZE)]


def test_alone_a_prompt_in_the_background_is_computed_at_once() -> None:
    scheduler = make_scheduler()
    probe = add_in_background(scheduler, 10)
    assert sizes(step(scheduler)) == [(probe, 10)]


def test_a_step_in_the_background_is_short_if_users_of_another_model_wait() -> None:
    scheduler = make_scheduler()
    probe = add_in_background(scheduler, 10)
    assert sizes(scheduler.next_batch(is_shared=True)) == [(probe, BLOCK_SIZE)]


def test_users_cannot_starve_the_background() -> None:
    """Prompts of users fill the budget of every step."""
    scheduler = make_scheduler(num_blocks=400)
    probe = add_in_background(scheduler, 10)
    for _ in range(12):
        add(scheduler, 30, 1)
    assert probe in run(scheduler)[:4]


def test_a_prompt_in_the_background_waits_for_a_block_that_another_computes() -> None:
    scheduler = make_scheduler()
    tokens = list(range(6))
    add_shared(scheduler, tokens)
    probe = add_shared(scheduler, tokens)
    probe.is_background = True
    assert [length for _, length in sizes(step(scheduler))] == [6]
    assert sizes(step(scheduler))[-1] == (probe, 2)  # the first block came from the cache


def test_a_scheduler_is_in_the_background_if_all_of_its_sequences_are() -> None:
    scheduler = make_scheduler()
    seen = [scheduler.is_background]
    probe = add_in_background(scheduler, 3)
    seen.append(scheduler.is_background)
    user = add(scheduler, 3)
    seen.append(scheduler.is_background)
    scheduler.remove(user)
    seen.append(scheduler.is_background)
    scheduler.remove(probe)
    assert [*seen, scheduler.is_background] == [False, True, False, True, False]
