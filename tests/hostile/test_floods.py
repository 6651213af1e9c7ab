"""Floods of large bodies have bounded memory.

`python -m tests.hostile.door` prints the same with latencies.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.halves import TAG
from tests.hostile.door import FLOODS, MIB, Door, open_door

RECEIVING_BYTES = 128 * MIB
# Strangers take no more than the window of each connection, or one place of health checks. A tenant takes half
# of what is set for messages that arrive. A message is there twice while it is read.
MOST_MIB = {
    "refused bodies, no key": 200,
    "trickling bodies, no key": 200,
    "one connection, no key": 200,
    "health checks, no key": 200,
    "large health checks, no key": 200,
    "trickling bodies of a tenant": 200 + RECEIVING_BYTES // MIB,
    "bodies of a tenant": 200 + RECEIVING_BYTES // MIB,
}


@pytest.fixture(scope="module")
def door(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    with open_door(store, TAG, folder, "--max-receiving-bytes", str(RECEIVING_BYTES)) as door:
        door.call(0.5)
        yield door


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_of_bodies_has_bounded_memory_and_others_are_answered(door: Door, name: str) -> None:
    before = door.memory()
    door.forget_peak()
    with door.flood(FLOODS[name], seconds=120):
        assert len(door.call(3)) > 0  # it raises an error for a call that is refused or takes half a minute
    assert door.memory("VmHWM") - before < MOST_MIB[name]
