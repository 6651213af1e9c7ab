"""Decide whether a disruption budget allows an eviction."""

import math
from collections.abc import Sequence

from tests.k8s.deployments import num_pods
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
        return num_pods(spec["minAvailable"], expected, math.ceil)
    return expected - num_pods(spec["maxUnavailable"], expected, math.ceil)
