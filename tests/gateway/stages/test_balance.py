"""Replicas chosen by load and by prefix."""

import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.stages.balance import by_prefix, least_busy

LOADS = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 200), min_size=1, max_size=12)
PREFIXES = st.binary(min_size=1, max_size=64)


@given(calls=LOADS, turn=st.integers(0, 100))
def test_the_least_busy_replica_has_the_fewest_calls(calls: dict[str, int], turn: int) -> None:
    assert calls[least_busy(calls, turn)] == min(calls.values())


def test_equally_busy_replicas_take_turns() -> None:
    assert [least_busy({"a": 1, "b": 1, "c": 2}, turn) for turn in range(4)] == ["a", "b", "a", "b"]


@given(calls=LOADS, prefix=PREFIXES)
def test_the_choice_does_not_depend_on_the_order_of_the_replicas(calls: dict[str, int], prefix: bytes) -> None:
    assert by_prefix(calls, prefix) == by_prefix(dict(reversed(calls.items())), prefix)


@given(calls=LOADS, prefix=PREFIXES)
def test_no_replica_gets_much_more_than_its_share(calls: dict[str, int], prefix: bytes) -> None:
    chosen = by_prefix(calls, prefix)
    mean = (sum(calls.values()) + 1) / len(calls)
    assert calls[chosen] + 1 <= max(4, math.ceil(mean + 2 * math.sqrt(mean)))


@given(calls=LOADS, prefix=PREFIXES)
def test_a_replica_that_leaves_moves_only_its_own_prefixes(calls: dict[str, int], prefix: bytes) -> None:
    idle = dict.fromkeys(calls, 0)
    chosen = by_prefix(idle, prefix)
    for gone in calls:
        left = {replica: 0 for replica in calls if replica != gone}
        if left and gone != chosen:
            assert by_prefix(left, prefix) == chosen


def test_prefixes_spread_evenly() -> None:
    idle = dict.fromkeys(["10.0.0.1:50052", "10.0.0.2:50052", "10.0.0.3:50052", "10.0.0.4:50052"], 0)
    counts = Counter(by_prefix(idle, number.to_bytes(32, "big")) for number in range(4000))
    assert set(counts) == set(idle)
    assert all(count == pytest.approx(1000, abs=150) for count in counts.values())


def test_a_hot_prefix_spreads_over_all_replicas_as_the_load_grows() -> None:
    calls = dict.fromkeys("abcd", 0)
    for _ in range(100):
        calls[by_prefix(calls, b"hot")] += 1
    assert max(calls.values()) <= 25 + 2 * 5  # the mean, and twice its root


def test_a_busy_fleet_keeps_most_prefixes_in_their_place() -> None:
    """Calls come and go, with images of Zipf-like popularity."""
    rng = random.Random(0)
    replicas = "abcd"
    popularity = [1 / rank**1.1 for rank in range(1, 400)]
    calls, running, in_place = dict.fromkeys(replicas, 0), [], 0
    for rank in rng.choices(range(1, 400), popularity, k=5000):
        prefix = str(rank).encode()
        chosen = by_prefix(calls, prefix)
        in_place += chosen == by_prefix(dict.fromkeys(replicas, 0), prefix)
        calls[chosen] += 1
        running.append(chosen)
        if len(running) > 24:
            calls[running.pop(rng.randrange(len(running)))] -= 1
    assert in_place > 0.9 * 5000
