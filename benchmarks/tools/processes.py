"""Single service processes, for benchmarks that need no whole stack."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tandem.errors import Unavailable
from tandem.stack import ServiceProcess

_READY_S = 600.0  # an engine may compile its kernels first


@contextmanager
def running(module: str, flags: Sequence[str], *, python: str = sys.executable) -> Iterator[ServiceProcess]:
    """Run `python -m MODULE FLAGS` on a free loopback port.

    Yields the process once it is ready, and kills it when the block ends. It starts with the environment variables of
    this process.

    Raises:
        Unavailable: it stopped, or was not ready in time. The message quotes its last output.
    """
    changed = threading.Condition()
    common = ["--listen", "127.0.0.1:0", "--log-format", "json", "--drain-s", "0"]
    service = ServiceProcess(module, module, [*common, *flags], lambda _service, _line: None, changed, python=python)
    try:
        service.start()
        with changed:
            changed.wait_for(lambda: service.ready or service.exit_code is not None, timeout=_READY_S)
        if not service.ready:
            raise Unavailable(f"{module} did not start: {service.last_error}", reason="SERVICE_NOT_READY")
        yield service
    finally:
        service.kill()


def peak_bytes(pid: int) -> int:
    """Return a process's peak memory, including mapped weights."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/status has no line VmHWM")


def group_bytes(pid: int) -> int:
    """Return the memory of a process and its children.

    Memory that processes share counts once.
    """
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if os.getpgid(int(folder.name)) == pid:
                sizes = dict(line.split(":") for line in (folder / "smaps_rollup").read_text().splitlines()[1:])
                total += int(sizes["Pss"].split()[0]) * 1024
    return total


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process and its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    user, system = int(fields[11]), int(fields[12])  # clock ticks
    return (user + system) / os.sysconf("SC_CLK_TCK")


def address_of(service: ServiceProcess) -> str:
    """Return the address of a running service, HOST:PORT."""
    return f"127.0.0.1:{service.ready['port']}"
