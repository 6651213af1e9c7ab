"""The test controller resolves variables and budgets as Kubernetes does."""

import base64

import pytest

from tests.k8s.evictions import may_evict
from tests.k8s.objects import ObjectStore, Pod, environment, quantity, selects, template_hash


def make_store() -> ObjectStore:
    store = ObjectStore()
    store.apply(
        [
            {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"A": "1", "B": "2"}},
            {"kind": "Secret", "metadata": {"name": "keys"}, "data": {"C": base64.b64encode(b"3").decode()}},
        ]
    )
    return store


def test_variables_come_from_config_maps_secrets_fields_and_resources() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}],
        "env": [
            {"name": "B", "value": "own"},
            {"name": "D", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "A"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu"}}},
            {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "resources": {"requests": {"cpu": "400m"}},
    }
    found = environment(container, Pod("a", "tandem", {}, {}), make_store())
    assert found == {"A": "1", "B": "own", "C": "3", "D": "1", "CPU": "1", "NAME": "a"}


def test_a_missing_config_map_is_named() -> None:
    with pytest.raises(LookupError, match='configmap "absent" not found'):
        environment({"envFrom": [{"configMapRef": {"name": "absent"}}]}, Pod("a", "tandem", {}, {}), make_store())


def test_quantities_are_numbers() -> None:
    assert [quantity(one) for one in ("64Mi", "250m", "1", 2)] == [64 * 2**20, 0.25, 1, 2]


def test_selectors_match_labels_and_expressions() -> None:
    expression = {"key": "app", "operator": "In", "values": ["a", "b"]}
    assert selects({}, {})
    assert selects({"matchLabels": {"x": "1"}, "matchExpressions": [expression]}, {"x": "1", "app": "b"})
    assert not selects({"matchExpressions": [expression]}, {"app": "c"})
    assert not selects({"matchLabels": {"x": "1"}}, {})


def test_every_edit_of_a_template_changes_its_hash() -> None:
    assert template_hash({"a": 1, "b": 2}) == template_hash({"b": 2, "a": 1}) != template_hash({"a": 1, "b": 3})


@pytest.mark.parametrize(("replicas", "unready", "allowed"), [(2, 0, True), (2, 1, False), (1, 0, True)])
def test_a_budget_keeps_pods_from_ending_together(replicas: int, unready: int, allowed: bool) -> None:
    budget = {"selector": {"matchLabels": {"app": "x"}}, "maxUnavailable": 1}
    store = ObjectStore()
    store.apply(
        [
            {"kind": "PodDisruptionBudget", "metadata": {"name": "x"}, "spec": budget},
            {"kind": "Deployment", "metadata": {"name": "x"}, "spec": {"replicas": replicas}},
        ]
    )
    pods = [Pod(str(n), "tandem", {"app": "x"}, {}, owner="x", ip="198.18.0.2") for n in range(replicas)]
    for number, pod in enumerate(pods):
        pod.ready = number >= unready
    assert may_evict(pods[-1], pods, store) is allowed
