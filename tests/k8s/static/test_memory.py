"""The memory limits of the base cover what the settings allow.

docs/kubernetes.md, capacity, has the formulas and the measured parts.
"""

from typing import Any

import pytest

from chassis.settings import ProcessSettings
from gateway.settings import GatewaySettings
from http_gateway.door import HttpSettings
from tests.k8s.static.manifests import containers, settings_of
from vision_service.service import VisionSettings

GIB = 2**30
UNITS = {"Mi": 2**20, "Gi": GIB}
SETTINGS: dict[str, type[ProcessSettings]] = {
    "vision": VisionSettings,
    "gateway": GatewaySettings,
    "http": HttpSettings,
}
# Bytes that a process takes apart from its settings: imports, and 0.71 GiB of weights of the largest measured model.
FIXED = {"vision": 0.71 * GIB + 0.4 * GIB, "gateway": 0.1 * GIB, "http": 0.1 * GIB}
# How often the bytes of each setting are taken, or the bytes of each process.
TIMES: dict[str, dict[str, float]] = {
    "vision": {"cache_bytes": 1, "decode_memory_bytes": 1, "decode_processes": 0.07 * GIB},
    "gateway": {"max_request_bytes": 4, "max_receiving_bytes": 1, "image_store_bytes": 1, "visual_cache_bytes": 1},
    "http": {"max_bodies_bytes": 3},
}


def bytes_of(quantity: str) -> int:
    """Return the bytes of a quantity such as 512Mi."""
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@pytest.mark.parametrize(("name", "pod", "container"), list(containers(tuple(SETTINGS))), ids=lambda one: str(one)[:8])
def test_a_pod_has_memory_for_all_that_its_settings_allow(
    name: str, pod: dict[str, Any], container: dict[str, Any]
) -> None:
    values, fields = settings_of(name), SETTINGS[name].model_fields
    needed = FIXED[name] + sum(
        times * int(values.get(f"TANDEM_{name.upper()}_{setting.upper()}", fields[setting].default))
        for setting, times in TIMES[name].items()
    )
    assert bytes_of(container["resources"]["limits"]["memory"]) >= needed
