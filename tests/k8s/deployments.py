"""Decide which pods of a Deployment to create and delete.

The rules are those of the Deployment controller in Kubernetes, for the strategies RollingUpdate and Recreate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tests.k8s.objects import Object, Pod


@dataclass(frozen=True, slots=True)
class Changes:
    """The next changes of a Deployment."""

    create: int  # pods of the current template
    delete: tuple[Pod, ...]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The limits of a rolling update, in pods."""

    replicas: int
    surge: int
    unavailable: int


def bounds(deployment: Object) -> Bounds:
    """Return the limits of a Deployment's strategy."""
    spec = deployment["spec"]
    replicas = spec.get("replicas", 1)
    strategy = spec.get("strategy", {})
    if strategy.get("type") == "Recreate":
        return Bounds(replicas, 0, replicas)
    rolling = strategy.get("rollingUpdate", {})
    surge = num_pods(rolling.get("maxSurge", "25%"), replicas, math.ceil)
    unavailable = num_pods(rolling.get("maxUnavailable", "25%"), replicas, math.floor)
    return Bounds(replicas, surge, unavailable if surge or unavailable else 1)


def next_changes(deployment: Object, template: str, pods: Sequence[Pod], now_s: float) -> Changes:
    """Return the next changes.

    Args:
        deployment: the object.
        template: hash of its pod template.
        pods: all of its pods, those that end included.
        now_s: monotonic time, for `minReadySeconds`.
    """
    limits, spec = bounds(deployment), deployment["spec"]
    recreate = spec.get("strategy", {}).get("type") == "Recreate"
    live = [pod for pod in pods if not pod.deleting]
    new = [pod for pod in live if pod.template == template]
    old = [pod for pod in live if pod.template != template]
    if recreate and (old or len(pods) > len(live)):
        return Changes(0, tuple(old))
    available = {pod for pod in live if pod.ready and now_s - pod.ready_since_s >= spec.get("minReadySeconds", 0)}

    create = max(0, min(limits.replicas - len(new), limits.replicas + limits.surge - len(live)))
    surplus = _first_to_delete(new, available)[: max(0, len(new) - limits.replicas)]

    # Old pods that are not ready go first. Ready ones go only while enough others are available.
    min_available = limits.replicas - limits.unavailable
    room = len(live) - len(surplus) - min_available - sum(pod not in available for pod in new)
    broken = [pod for pod in old if pod not in available][: max(0, room)]
    spare = len(available - set(surplus)) - min_available
    healthy = _first_to_delete([pod for pod in old if pod in available], available)
    ready = healthy[: max(0, min(spare, room - len(broken)))]
    return Changes(create, (*surplus, *broken, *ready))


def is_rolled_out(deployment: Object, template: str, pods: Sequence[Pod]) -> bool:
    """Return whether exactly the wanted pods exist and are ready.

    Pods that end count as well, so an update includes the end of its old pods.
    """
    return len(pods) == deployment["spec"].get("replicas", 1) and all(
        pod.serves and pod.template == template for pod in pods
    )


def _first_to_delete(pods: Sequence[Pod], available: set[Pod]) -> list[Pod]:
    """Sort pods: unavailable ones first, then the youngest."""
    return sorted(pods, key=lambda pod: (pod in available, -pod.created_s))


def num_pods(value: int | str, replicas: int, rounded: Callable[[float], int]) -> int:
    """Return a number or percentage of replicas, in pods."""
    if isinstance(value, int):
        return value
    return rounded(replicas * int(value.removesuffix("%")) / 100)
