"""A cluster of real processes that tests kill and restart."""

import io
import os
import random
import signal
import socket
import threading
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image

from tandem.stack.process import ServiceProcess

HOST = "127.0.0.1"
TAG = "tiny-v1.0.0"
READY_S = 300.0

# Gauges that must return to their earlier values when all requests have ended, by kind of process.
RESOURCE_METRICS = {
    "gateway": (
        "tandem_gateway_running",
        "tandem_gateway_waiting",
        "tandem_visual_cache_pinned",
        "tandem_rpc_in_flight",
        "tandem_tasks",
        "process_open_fds",
    ),
    "vision": (
        "tandem_vision_decoding",
        "tandem_vision_waiting",
        "tandem_visual_cache_pinned",
        "tandem_rpc_in_flight",
        "tandem_tasks",
        "process_open_fds",
    ),
    "language": (
        "tandem_language_running",
        "tandem_language_waiting",
        "tandem_language_kv_blocks_used",
        "tandem_rpc_in_flight",
        "tandem_tasks",
        "process_open_fds",
    ),
}


class Cluster:
    """Replicas of both stages, and gateways that use them.

    A context manager that stops every process at its end. Processes are named by kind and number: 'vision-0',
    'language-1', 'gateway-0'.
    """

    def __init__(
        self,
        models: Path,
        *,
        replicas: int = 1,
        gateways: int = 1,
        stage_flags: Sequence[str] = (),
        vision_flags: Sequence[str] = (),
        gateway_flags: Sequence[str] = (),
    ) -> None:
        self._models = models
        self._changed = threading.Condition()
        self._stage_flags = {"vision": [*stage_flags, *vision_flags], "language": list(stage_flags)}
        self._gateway_flags = list(gateway_flags)
        self._flags: dict[str, list[str]] = {}
        self._services: dict[str, ServiceProcess] = {}
        self._killed: list[str] = []
        self.logs: dict[str, list[str]] = {}
        self.stages = [f"{stage}-{number}" for stage in ("vision", "language") for number in range(replicas)]
        self.gateways = [f"gateway-{number}" for number in range(gateways)]

    def __enter__(self) -> Self:
        try:
            stage = ["--models", str(self._models), "--tags", TAG, "--precision", "float32", "--threads", "1"]
            for name in self.stages:
                self._start(name, [*stage, *self._stage_flags[name.partition("-")[0]]])
            self.wait_until_ready()
            addresses = {
                stage: ",".join(self.address(name) for name in self.stages if name.startswith(stage))
                for stage in ("vision", "language")
            }
            own = ["--models", str(self._models), "--release", TAG, "--refresh-s", "0.5"]
            for name in self.gateways:
                stages = ["--vision", addresses["vision"], "--language", addresses["language"]]
                self._start(name, [*own, *stages, *self._gateway_flags])
            self.wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for service in self._services.values():
            service.kill()

    def address(self, name: str) -> str:
        return f"{HOST}:{self._services[name].ready['port']}"

    def pid(self, name: str) -> int:
        return self._services[name].pid

    def metrics(self, name: str) -> dict[str, float]:
        """Return every metric of a process, summed over its labels."""
        url = f"http://{HOST}:{self._services[name].ready['metrics_port']}/metrics"
        totals: dict[str, float] = {}
        with urllib.request.urlopen(url) as page:
            for line in page.read().decode().splitlines():
                if not line.startswith("#"):
                    key, _, value = line.rpartition(" ")
                    metric = key.partition("{")[0]
                    totals[metric] = totals.get(metric, 0.0) + float(value)
        return totals

    def resources(self) -> dict[str, dict[str, float]]:
        """Return the resources in use by metric, for every process."""
        return {
            name: {metric: found[metric] for metric in RESOURCE_METRICS[name.partition("-")[0]] if metric in found}
            for name in (*self.stages, *self.gateways)
            for found in [self.metrics(name)]
        }

    def kill(self, *names: str) -> None:
        """Kill processes with SIGKILL, without draining."""
        for name in names:
            os.kill(self._services[name].pid, signal.SIGKILL)
            self._killed.append(name)

    def restart_killed(self) -> None:
        """Restart every killed process at its former address."""
        while self._killed:
            name = self._killed.pop()
            old = self._services[name]
            old.wait(None)
            self._start(name, self._flags[name], listen=f"{HOST}:{old.ready['port']}")
        self.wait_until_ready()

    def unexpected_errors(self) -> list[str]:
        """Return the log lines about unexpected errors."""
        return [line for lines in self.logs.values() for line in lines if '"unexpected error"' in line]

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            for service in self._services.values():
                assert service.exit_code is None, f"{service.name} stopped: {self.logs.get(service.name, [])[-3:]}"
            return all(service.ready for service in self._services.values())

        with self._changed:
            assert self._changed.wait_for(ready, timeout=READY_S), "not ready in time"

    def _start(self, name: str, flags: list[str], listen: str = "") -> None:
        modules = {"vision": "vision_service", "language": "language_service", "gateway": "gateway"}
        self._flags[name] = flags
        common = ["--listen", listen or f"{HOST}:{_stable_port()}", "--log-format", "json", "--drain-s", "2"]
        self._services[name] = ServiceProcess(
            name, modules[name.partition("-")[0]], [*common, *flags], self._store_log, self._changed
        )
        self._services[name].start()

    def _store_log(self, service: str, line: str) -> None:
        self.logs.setdefault(service, []).append(line)


def _stable_port() -> int:
    """Return a free port outside the system's ephemeral range.

    The system gives it to no other process while its own process is dead.
    """
    while True:
        port = random.randrange(10_000, 32_000)
        with suppress(OSError), socket.socket() as listener:
            listener.bind((HOST, port))
            return port


def image(number: int) -> bytes:
    """Return a PNG file, a different image for every number."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, number // 65536 % 256)).save(file, "PNG")
    return file.getvalue()
