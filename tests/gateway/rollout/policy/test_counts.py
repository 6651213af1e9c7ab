"""Counts are sums that stores keep by path."""

from gateway.rollout.policy.counts import Counts
from tests.gateway.rollout.plans import numbers


def test_counts_survive_their_paths() -> None:
    counts = numbers("stable", 40, errors=3, kind="images at hand") + numbers("shadow", 7, empty=2)
    counts.add("shadow", "dropped", 4)
    assert Counts.from_paths(counts.to_paths()) == counts


def test_each_count_has_one_path() -> None:
    counts = Counts()
    counts.add("canary", "errors", 2)
    counts.add_time("canary", "first_token", "images encoded", -53)
    assert counts.to_paths() == {"canary/errors": 2, "canary/first_token/images encoded/-53": 1}
    assert counts.totals() == {"canary/errors": 2}


def test_paths_of_a_newer_version_are_skipped() -> None:
    """During an update, gateways of two versions share one store."""
    known = {"stable/requests": 1, "stable/first_token/text/7": 2}
    newer = {"stable/retries": 1, "stable/first_token/audio/7": 1, "stable/first_token/text/p50": 1, "": 1}
    assert Counts.from_paths({**known, **newer}).to_paths() == known


def test_a_tenant_with_many_ratings_counts_as_one_with_fewer() -> None:
    counts = Counts()
    for tenant, rated, disliked in ((1, 1000, 200), (2, 10, 1)):
        for number in range(rated):
            counts.add_rating("canary", tenant, disliked=number < disliked)
    counts.add_rating("stable", 3, disliked=True)
    assert counts.ratings() == [((0, 0), (20, 80)), ((0, 0), (1, 9)), ((1, 0), (0, 0))]
    assert Counts().ratings() == []
    assert Counts.from_paths(counts.to_paths()) == counts
    assert (counts + counts).ratings() == [((0, 0), (20, 80)), ((0, 0), (2, 18)), ((2, 0), (0, 0))]
