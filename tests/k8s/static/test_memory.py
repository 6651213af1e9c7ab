"""Memory limits cover what the settings allow.

docs/kubernetes.md, capacity, has the formulas and the measured parts.
"""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from chassis.settings import ProcessSettings
from gateway.settings import GatewaySettings
from http_gateway.door import HttpSettings
from language_service.service import LanguageSettings
from tests.k8s.static.manifests import K8S, REPOSITORY, containers, objects, settings_of
from vision_service.service import VisionSettings

GIB = 2**30
UNITS = {"Mi": 2**20, "Gi": GIB, "m": 2**20}
SETTINGS: dict[str, type[ProcessSettings]] = {
    "vision": VisionSettings,
    "language": LanguageSettings,
    "gateway": GatewaySettings,
    "http": HttpSettings,
}
# Bytes that a process takes apart from its settings: imports, and the weights of the demo model.
DEMO = {"vision": 0.285 * GIB, "language": 0.33 * GIB, "gateway": 0.1 * GIB, "http": 0.08 * GIB}
# The same in the base, with 0.71 GiB of weights of the largest measured model. Language fills its pod with KV cache.
BASE = {"vision": 0.71 * GIB + 0.4 * GIB, "gateway": 0.1 * GIB, "http": 0.1 * GIB}
# How often the bytes of each setting are taken, or the bytes of each process.
TIMES: dict[str, dict[str, float]] = {
    "vision": {"cache_bytes": 1, "decode_memory_bytes": 1, "decode_processes": 0.07 * GIB, "max_receiving_bytes": 1},
    "language": {"kv_cache_bytes": 1, "max_receiving_bytes": 1},
    "gateway": {"max_request_bytes": 4, "max_receiving_bytes": 1, "image_store_bytes": 1, "visual_cache_bytes": 1},
    "http": {"max_bodies_bytes": 3},
}


def bytes_of(quantity: str) -> int:
    """Return the bytes of a quantity such as 512Mi."""
    number, unit = re.fullmatch(r"(\d+)(\w+)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * UNITS[unit]


def needed_bytes(name: str, fixed: float, variables: dict[str, str]) -> float:
    """Return the memory of a process with these variables."""
    fields = SETTINGS[name].model_fields
    return fixed + sum(
        times * int(variables.get(f"TANDEM_{name.upper()}_{setting.upper()}", fields[setting].default))
        for setting, times in TIMES[name].items()
    )


def minimal() -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield name, variables and limit of each pod."""
    folder = K8S / "overlays" / "minimal"
    generated = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    literals = {one["name"].removesuffix("-settings"): one.get("literals", []) for one in generated}
    for one in objects((folder / "size.yaml").read_text()):
        name = one["metadata"]["name"]
        changed = dict(literal.split("=", 1) for literal in literals[name])
        (container,) = one["spec"]["template"]["spec"]["containers"]
        yield name, settings_of(name) | changed, container["resources"]["limits"]["memory"]


def compose() -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield name, variables and limit of each service."""
    services = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())["services"]
    for name in SETTINGS:
        yield name, services[name]["environment"], services[name]["mem_limit"]


@pytest.mark.parametrize(("name", "pod", "container"), list(containers(tuple(BASE))), ids=lambda one: str(one)[:8])
def test_a_pod_has_memory_for_all_that_its_settings_allow(
    name: str, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    limit = bytes_of(container["resources"]["limits"]["memory"])
    assert limit >= needed_bytes(name, BASE[name], settings_of(name))


@pytest.mark.parametrize(("name", "variables", "limit"), [*minimal(), *compose()], ids=lambda one: str(one)[:8])
def test_a_small_pod_has_memory_for_the_demo_model(name: str, variables: dict[str, str], limit: str) -> None:
    assert bytes_of(limit) >= needed_bytes(name, DEMO[name], variables)
