"""Lines of probe files for several tests."""

import json
from typing import Any

from checkpoint.probes import Probe, Probes, parse_probes


def probe_line(probe_id: str = "one", **fields: Any) -> str:
    """Return the line of a probe about a text."""
    plain = {
        "id": probe_id,
        "messages": [{"role": "user", "content": "What is it?"}],
        "judge": {"exact": "A bag."},
        **fields,
    }
    return json.dumps(plain, ensure_ascii=False)


def no_image(name: str) -> bytes:
    raise FileNotFoundError(name)


def parse(*lines: str) -> Probes:
    return parse_probes("\n".join(lines).encode(), no_image)


def probe(**fields: Any) -> Probe:
    """Return one parsed probe."""
    return parse(probe_line(**fields)).probes[0]
