"""Rolling updates of the test controller follow the rules of Kubernetes."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.k8s.deployments import bounds, is_rolled_out, next_changes
from tests.k8s.objects import Pod


def deployment(replicas: int, *, surge: int | str = 1, unavailable: int | str = 0, **spec: Any) -> dict[str, Any]:
    rolling = {"maxSurge": surge, "maxUnavailable": unavailable}
    return {"spec": {"replicas": replicas, "strategy": {"rollingUpdate": rolling}, **spec}}


def pod(template: str, *, ready: bool = True, deleting: bool = False, created_s: float = 0) -> Pod:
    made = Pod(f"{template}-{created_s}", "tandem", {}, {}, template=template, ip="198.18.0.2", created_s=created_s)
    made.ready, made.deleting = ready, deleting
    return made


def test_percentages_round_surge_up_and_unavailable_down() -> None:
    found = bounds(deployment(3, surge="25%", unavailable="25%"))
    assert (found.surge, found.unavailable) == (1, 0)


def test_missing_pods_are_created_at_once() -> None:
    assert next_changes(deployment(3), "new", [], 0).create == 3


def test_an_update_creates_the_surge_first_and_deletes_nothing() -> None:
    changes = next_changes(deployment(2), "new", [pod("old"), pod("old")], 0)
    assert (changes.create, changes.delete) == (1, ())


def test_an_old_pod_ends_when_the_new_one_is_ready() -> None:
    pods = [pod("old", created_s=1), pod("old", created_s=2), pod("new")]
    assert next_changes(deployment(2), "new", pods, 0).delete == (pods[1],)


def test_a_new_pod_that_is_not_ready_stops_the_update() -> None:
    pods = [pod("old"), pod("old"), pod("new", ready=False)]
    changes = next_changes(deployment(2), "new", pods, 0)
    assert (changes.create, changes.delete) == (0, ())


def test_old_pods_that_are_not_ready_end_first() -> None:
    pods = [pod("old", ready=False), pod("old"), pod("old"), pod("new")]
    assert next_changes(deployment(3), "new", pods, 0).delete == (pods[0],)


def test_scaling_down_takes_unready_pods_then_the_youngest() -> None:
    pods = [pod("new", created_s=1), pod("new", created_s=2), pod("new", created_s=3, ready=False)]
    assert next_changes(deployment(1), "new", pods, 0).delete == (pods[2], pods[1])


def test_recreate_waits_for_the_end_of_all_old_pods() -> None:
    recreate = {"spec": {"replicas": 1, "strategy": {"type": "Recreate"}}}
    old = pod("old")
    assert next_changes(recreate, "new", [old], 0).delete == (old,)
    old.deleting = True
    assert next_changes(recreate, "new", [old], 0).create == 0
    assert next_changes(recreate, "new", [], 0).create == 1


def test_min_ready_seconds_delay_the_end_of_old_pods() -> None:
    pods = [pod("old"), pod("new")]
    pods[1].ready_since_s = 95
    slow = deployment(1, minReadySeconds=10)
    pods[0].ready_since_s = 1
    assert next_changes(slow, "new", pods, now_s=100).delete == ()
    assert next_changes(slow, "new", pods, now_s=106).delete == (pods[0],)


@given(
    replicas=st.integers(1, 4),
    surge=st.integers(0, 2),
    unavailable=st.integers(0, 2),
    turns=st.lists(st.integers(0, 10), min_size=60, max_size=60),
)
def test_an_update_keeps_its_bounds_and_ends(replicas: int, surge: int, unavailable: int, turns: list[int]) -> None:
    """Pods become ready and end in any order."""
    wanted = deployment(replicas, surge=surge, unavailable=unavailable)
    limits = bounds(wanted)
    pods = [pod("old", created_s=number) for number in range(replicas)]
    for turn in turns:
        changes = next_changes(wanted, "new", pods, 0)
        for one in changes.delete:
            one.deleting = True
        pods += [pod("new", ready=False) for _ in range(changes.create)]
        live = [one for one in pods if not one.deleting]
        assert len(live) <= replicas + limits.surge
        assert sum(one.ready for one in live) >= replicas - limits.unavailable
        waiting = [one for one in pods if one.deleting or not one.ready]
        if waiting:
            chosen = waiting[turn % len(waiting)]
            if chosen.deleting:
                pods.remove(chosen)
            else:
                chosen.ready = True
    assert is_rolled_out(wanted, "new", pods)
