"""Find the processes that vLLM starts."""

import time
from pathlib import Path


def children(pid: int) -> dict[int, str]:
    """Return all processes below another, with their names."""
    parents: dict[int, tuple[int, str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = path.read_text()
        except OSError:  # it has just ended
            continue
        name, _, rest = text.partition("(")[2].rpartition(")")
        state, parent = rest.split()[:2]
        if state != "Z":
            parents[int(path.parent.name)] = (int(parent), name)
    found: dict[int, str] = {}
    wave = {pid}
    while wave:
        wave = {child for child, (parent, _) in parents.items() if parent in wave}
        found |= {child: parents[child][1] for child in wave}
    return found


def engine_core(pid: int) -> int:
    """Return the process in which vLLM schedules, below a service."""
    [core] = [child for child, name in children(pid).items() if name.startswith("VLLM::EngineCor")]
    return core


def wait_until_gone(pids: set[int], timeout_s: float = 30) -> None:
    """Wait until none of the processes runs."""
    deadline = time.monotonic() + timeout_s
    while left := {pid for pid in pids if _runs(pid)}:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
