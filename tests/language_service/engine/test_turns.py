"""Engines of one process take turns on the device."""

import asyncio
import threading

import pytest

from language_service.engine.turns import BACKGROUND_SHARE, Turns
from language_service.model.decoder import Decoder
from language_service.sampling import SamplingOptions
from tests.language_service.asking import PROMPTS, ask, expected, feed, read
from tests.language_service.conftest import MakeEngine


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def turns(clock: Clock) -> Turns:
    return Turns(clock)


def compute(turns: Turns, clock: Clock, seconds: float, *, is_background: bool = False) -> None:
    with turns.take(is_background=is_background):
        clock.now_s += seconds


class Waits(threading.Condition):
    """Records how long it would have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0

    def wait(self, timeout: float | None = None) -> bool:
        self.seconds = timeout or 0.0
        return False


def wait_s(turns: Turns) -> float:
    condition = Waits()
    assert turns.waits_if_busy(condition) == (condition.seconds > 0)
    return condition.seconds


def test_steps_in_the_background_get_a_small_share_of_the_time(turns: Turns, clock: Clock) -> None:
    compute(turns, clock, 0.01)
    compute(turns, clock, 0.01, is_background=True)
    assert wait_s(turns) == pytest.approx(0.01 / BACKGROUND_SHARE - 0.01)
    background_s = others_s = 0.0
    for _ in range(1000):
        if wait_s(turns) == 0:
            compute(turns, clock, 0.01, is_background=True)
            background_s += 0.01
        compute(turns, clock, 0.005)
        others_s += 0.005
    assert background_s / (background_s + others_s) == pytest.approx(BACKGROUND_SHARE, rel=0.1)


def test_without_others_steps_in_the_background_do_not_wait(turns: Turns, clock: Clock) -> None:
    compute(turns, clock, 1.0, is_background=True)
    assert wait_s(turns) == 0
    compute(turns, clock, 1.0)
    assert wait_s(turns) > 0
    clock.now_s += 1.0  # the others have nothing to compute
    assert wait_s(turns) == 0


def test_a_long_step_of_others_counts_while_it_computes(turns: Turns, clock: Clock) -> None:
    compute(turns, clock, 1.0, is_background=True)
    with turns.take(is_background=False):
        clock.now_s += 2.0
        assert wait_s(turns) == pytest.approx(1 / BACKGROUND_SHARE - 1 - 2)


def test_one_engine_computes_at_a_time(turns: Turns) -> None:
    events: list[str] = []
    entered = threading.Event()

    def other() -> None:
        entered.set()
        with turns.take(is_background=True):
            events.append("other")

    with turns.take(is_background=False):
        thread = threading.Thread(target=other)
        thread.start()
        assert entered.wait(60)
        events.append("first")
    thread.join(60)
    assert events == ["first", "other"]


def test_a_step_that_fails_ends_its_turn(turns: Turns, clock: Clock) -> None:
    with pytest.raises(ValueError, match="failed"), turns.take(is_background=False):
        raise ValueError("failed")
    clock.now_s += 1.0
    compute(turns, clock, 0.1, is_background=True)
    assert wait_s(turns) == 0


async def test_an_engine_in_the_background_answers_beside_a_busy_one(make_engine: MakeEngine, decoder: Decoder) -> None:
    """Both answer as they would alone."""
    turns = Turns()
    busy, canary = await make_engine(turns=turns), await make_engine(turns=turns, tag="canary-v1.0.0")
    users = asyncio.gather(*(ask(busy, parts) for parts in PROMPTS * 4))
    probe = canary.open(SamplingOptions(), salt=b"", priority=1, is_background=True)
    feed(probe, PROMPTS[1])
    probe.end_prompt(12)
    tokens, _ = await read(probe)
    assert tokens == expected(decoder, PROMPTS[1])
    assert await users == [expected(decoder, parts) for parts in PROMPTS * 4]
