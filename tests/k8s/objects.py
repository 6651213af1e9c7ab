"""Read the objects of a rendered overlay."""

import base64
import copy
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.k8s.static import manifests

Object = dict[str, Any]
RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def render(folder: Path) -> list[Object]:
    """Build a kustomization with kubectl.

    Raises:
        AssertionError: it does not build. The message is kubectl's.
    """
    return manifests.objects(manifests.build(folder))


class ObjectStore:
    """The desired objects by kind and name."""

    def __init__(self) -> None:
        self._objects: dict[tuple[str, str], Object] = {}

    def apply(self, objects: Sequence[Object]) -> None:
        """Add objects, or replace those of the same name.

        The annotation of `kubectl rollout restart` stays, since no manifest names it.
        """
        for one in objects:
            key = one["kind"], one["metadata"]["name"]
            before, made = self._objects.get(key), copy.deepcopy(one)
            if before is not None and made["kind"] == "Deployment":
                kept = before["spec"]["template"]["metadata"].get("annotations", {})
                if RESTARTED_AT in kept:
                    annotations = made["spec"]["template"]["metadata"].setdefault("annotations", {})
                    annotations.setdefault(RESTARTED_AT, kept[RESTARTED_AT])
            self._objects[key] = made

    def delete(self, kind: str, name: str) -> None:
        del self._objects[kind, name]

    def get(self, kind: str, name: str) -> Object:
        """Return the object itself, for editing."""
        return self._objects[kind, name]

    def find(self, kind: str, name: str) -> Object | None:
        return self._objects.get((kind, name))

    def texts(self, kind: str, name: str) -> dict[str, str]:
        """Return the texts of a ConfigMap or a Secret.

        Raises:
            LookupError: it does not exist.
        """
        found = self.find(kind, name)
        if found is None:
            raise LookupError(f'{kind.lower()} "{name}" not found')
        data = found.get("data") or {}
        if kind == "Secret":
            data = {key: base64.b64decode(value).decode() for key, value in data.items()}
        return {**data, **found.get("stringData", {})}

    def of(self, kind: str) -> list[Object]:
        return [one for (its_kind, _), one in self._objects.items() if its_kind == kind]


@dataclass(eq=False)
class Pod:
    """One pod and its status."""

    name: str
    namespace: str
    labels: dict[str, str]
    spec: Object
    owner: str = ""  # name of the Deployment
    template: str = ""  # hash of the pod template
    node: str = ""
    ip: str = ""
    ready: bool = False  # all containers are ready
    ready_since_s: float = 0.0  # monotonic
    created_s: float = 0.0
    deleting: bool = False
    restarts: int = 0
    events: list[str] = field(default_factory=list)
    termination_message: str = ""

    @property
    def serves(self) -> bool:
        """Whether the pod belongs to the endpoints of its Services."""
        return self.ready and not self.deleting and bool(self.ip)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return whether a label selector matches.

    Args:
        selector: with `matchLabels` and `matchExpressions`. An empty one matches everything.
        labels: labels of the object.
    """
    if any(labels.get(key) != value for key, value in selector.get("matchLabels", {}).items()):
        return False
    return all(_matches(one, labels) for one in selector.get("matchExpressions", []))


def _matches(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    results = {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }
    return results[expression["operator"]]


def template_hash(template: Object) -> str:
    """Return a short hash of a template."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:10]


def quantity(text: str | int | float) -> float:
    """Return a quantity such as '64Mi' as a number."""
    match = re.fullmatch(r"([\d.]+)(m|[kMG]|[KMG]i|)", str(text))
    assert match, f"unknown quantity {text!r}"
    return float(match[1]) / 1000 if match[2] == "m" else float(match[1]) * _BYTES[match[2]]


def environment(container: Object, pod: Pod, store: ObjectStore) -> dict[str, str]:
    """Return the resolved variables of a container.

    Raises:
        LookupError: a ConfigMap, Secret or key is missing.
    """
    found: dict[str, str] = {}
    for source in container.get("envFrom", []):
        data = _data(source.get("configMapRef"), source.get("secretRef"), store)
        found.update({source.get("prefix", "") + key: value for key, value in data.items()})
    for variable in container.get("env", []):
        if "value" in variable:
            found[variable["name"]] = variable["value"]
        elif (value := _value_from(variable["valueFrom"], container, pod, store)) is not None:
            found[variable["name"]] = value
    return found


def _value_from(source: Object, container: Object, pod: Pod, store: ObjectStore) -> str | None:
    if field_ref := source.get("fieldRef"):
        fields = {"metadata.name": pod.name, "metadata.namespace": pod.namespace, "status.podIP": pod.ip}
        return fields[field_ref["fieldPath"]]
    if resource := source.get("resourceFieldRef"):
        group, name = resource["resource"].split(".")
        value = quantity(container["resources"][group][name]) / quantity(resource.get("divisor", 1))
        return str(-int(-value // 1))  # rounded up
    reference = source.get("configMapKeyRef") or source["secretKeyRef"]
    data = _data(source.get("configMapKeyRef"), source.get("secretKeyRef"), store)
    if reference["key"] not in data and not reference.get("optional"):
        raise LookupError(f"key {reference['key']} of {reference['name']} not found")
    return data.get(reference["key"])


def _data(config_map: Object | None, secret: Object | None, store: ObjectStore) -> dict[str, str]:
    kind, reference = ("ConfigMap", config_map) if config_map else ("Secret", secret or {})
    if reference.get("optional") and store.find(kind, reference["name"]) is None:
        return {}
    return store.texts(kind, reference["name"])
