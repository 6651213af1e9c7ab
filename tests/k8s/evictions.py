"""Decide whether a disruption budget allows an eviction."""

import math
from collections.abc import Sequence

from tests.k8s.objects import ObjectStore, Pod, selects


def may_evict(pod: Pod, pods: Sequence[Pod], store: ObjectStore) -> bool:
    """Return whether every budget allows the eviction of a pod."""
    for budget in store.of("PodDisruptionBudget"):
        spec = budget["spec"]
        if not selects(spec["selector"], pod.labels):
            continue
        if not pod.ready and spec.get("unhealthyPodEvictionPolicy") == "AlwaysAllow":
            continue
        selected = [one for one in pods if selects(spec["selector"], one.labels)]
        owners = {one.owner for one in selected}
        expected = sum(store.get("Deployment", owner)["spec"].get("replicas", 1) for owner in owners if owner)
        healthy = sum(one.serves for one in selected)
        if healthy - 1 < _wanted(spec, expected):
            return False
    return True


def _wanted(spec: dict[str, int | str], expected: int) -> int:
    """Return the healthy pods that must remain."""
    if "minAvailable" in spec:
        return _pods(spec["minAvailable"], expected)
    return expected - _pods(spec["maxUnavailable"], expected)


def _pods(value: int | str, expected: int) -> int:
    return value if isinstance(value, int) else math.ceil(expected * int(value.removesuffix("%")) / 100)
