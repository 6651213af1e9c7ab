"""The requests of one caller have a bounded share of what counts."""

from collections import Counter

import pytest

from gateway.rollout.policy.counts import Arm
from gateway.rollout.policy.evidence import MAX_AIMED_SHARE, Evidence, KeyFilter


def takes(evidence: Evidence, arm: Arm, key: str, caller: str) -> bool:
    """Return whether a request counts at a single gateway."""
    return evidence.takes(arm, key, caller, is_first=evidence.is_new(key))


def test_a_filter_knows_every_key_and_takes_few_new_ones_for_known() -> None:
    keys = KeyFilter()
    num_new = sum(keys.add(f"key {number}") for number in range(50_000))
    assert num_new > 49_900
    assert not any(keys.add(f"key {number}") for number in range(50_000))


def test_a_filter_that_is_full_takes_every_key_for_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.rollout.policy.evidence._MAX_KEYS", 10)
    keys = KeyFilter()
    assert [keys.add(f"key {number}") for number in range(20)] == [True] * 10 + [False] * 10


def test_callers_who_aim_at_a_release_get_a_hundredth_of_it_together() -> None:
    evidence = Evidence()
    for caller in range(20):
        assert takes(evidence, "canary", f"known {caller}", f"caller {caller}")
    aimed = 0
    for number in range(2000):
        takes(evidence, "canary", f"new {number}", "honest")
        for caller in range(20):
            aimed += takes(evidence, "canary", f"known {caller}", f"caller {caller}")
    assert 0 < aimed <= MAX_AIMED_SHARE * (2020 + aimed)


def test_the_first_request_of_each_key_always_counts() -> None:
    evidence = Evidence()
    assert all(takes(evidence, "stable", f"key {number}", f"caller {number % 3}") for number in range(3000))


def test_a_key_is_known_in_later_steps_and_new_in_the_next_rollout() -> None:
    evidence = Evidence()
    takes(evidence, "stable", "other", "honest")
    assert takes(evidence, "canary", "known", "hostile")
    evidence.begin_step()
    assert not takes(evidence, "canary", "known", "hostile")
    evidence.begin_rollout()
    assert takes(evidence, "canary", "known", "hostile")


@pytest.mark.parametrize(("num_keys", "least"), [(1, 1.0), (4, 0.9), (30, 0.9)])
def test_of_one_caller_with_few_keys_nearly_all_requests_count(num_keys: int, least: float) -> None:
    """Else a test with few keys would never end."""
    evidence = Evidence()
    taken = sum(takes(evidence, "canary", f"key {number % num_keys}", "test") for number in range(1000))
    assert taken >= least * 1000


def test_one_key_among_few_weighs_at_most_twice_its_share() -> None:
    evidence = Evidence()
    taken: Counter[str] = Counter()
    for number in range(4000):
        for key in (f"key {number % 20}", *["loud"] * 20):
            taken[key] += takes(evidence, "canary", key, "test")
    assert taken["loud"] <= 0.12 * taken.total()
    assert taken.total() > 4000


def test_a_key_that_another_gateway_has_seen_can_be_aimed() -> None:
    """Its first request here counts like any later one."""
    evidence = Evidence()
    evidence.takes("canary", "another", "honest", is_first=True)
    taken = [evidence.takes("canary", f"known {number}", "hostile", is_first=False) for number in range(50)]
    assert not any(taken)


def test_one_caller_of_this_gateway_is_not_alone_if_others_have_callers() -> None:
    evidence = Evidence()
    assert takes(evidence, "canary", "key", "hostile")
    assert takes(evidence, "canary", "key", "hostile")
    evidence.note_other_callers()
    assert not takes(evidence, "canary", "key", "hostile")


@pytest.mark.parametrize("arm", ["stable", "canary"])
def test_callers_that_are_trusted_count_always(arm: Arm) -> None:
    evidence = Evidence(trusts_callers=True)
    assert all(takes(evidence, arm, "key", f"caller {number % 2}") for number in range(100))
