"""The choice of a conversation's release."""

import math
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.policy.choice import point, takes_canary

keys = st.text(max_size=40)
weights = st.floats(0, 100)


@settings(deadline=None)
@given(keys, keys, weights, weights)
def test_raising_the_weight_never_moves_a_conversation_back(key: str, rollout: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert takes_canary(key, rollout, low) <= takes_canary(key, rollout, high)


@settings(deadline=None)
@given(keys, keys)
def test_the_canary_gets_no_conversation_at_0_and_all_at_100(key: str, rollout: str) -> None:
    assert not takes_canary(key, rollout, 0)
    assert takes_canary(key, rollout, 100)
    assert 0 <= point(key, rollout) < 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**64), st.sampled_from([1, 5, 25, 50, 99]))
def test_the_share_on_the_canary_is_the_weight(rollout: int, weight: int) -> None:
    trials, share = 2000, weight / 100
    taken = sum(takes_canary(f"user-{index}", str(rollout), weight) for index in range(trials))
    # Six standard deviations, which chance exceeds once in a billion.
    assert abs(taken - trials * share) < 6 * math.sqrt(trials * share * (1 - share))


def test_another_rollout_moves_other_conversations_first() -> None:
    keys = [f"user-{index}" for index in range(2000)]
    both = sum(takes_canary(key, "first", 50) and takes_canary(key, "second", 50) for key in keys)
    assert 400 < both < 600  # a quarter, as for two independent choices


def test_another_process_chooses_alike() -> None:
    """Python's own hash has a new seed per process."""
    program = "from gateway.rollout.policy.choice import point; print([point(str(n), 'r') for n in range(100)])"
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.strip() == str([point(str(number), "r") for number in range(100)])
