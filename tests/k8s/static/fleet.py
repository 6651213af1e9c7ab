"""Processes of the services that tests kill, stop and start again."""

import os
import signal
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tandem.stack.process import ServiceProcess

HOST = "127.0.0.1"
READY_S = 120.0


class Fleet:
    """Named processes, all killed at the end. A context manager."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._processes: dict[str, ServiceProcess] = {}
        self._commands: dict[str, tuple[str, list[str]]] = {}
        self._log: list[str] = []

    def start(self, name: str, module: str, flags: Sequence[str]) -> None:
        """Start a process and wait until it is ready.

        A later `restart` takes the same ports.
        """
        self._commands[name] = (module, [*flags, "--log-format", "json"])
        self._run(name, f"{HOST}:0", 0)

    def restart(self, name: str) -> None:
        """Kill a process and start it again."""
        self.kill(name)
        ready = self._processes[name].ready
        self._run(name, self.address(name), ready["metrics_port"])

    def kill(self, name: str) -> None:
        self._processes[name].kill()

    def freeze(self, name: str) -> None:
        """Stop a process: it computes and answers nothing."""
        os.kill(self._processes[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        os.kill(self._processes[name].pid, signal.SIGCONT)

    def address(self, name: str) -> str:
        return f"{HOST}:{self._processes[name].ready['port']}"

    def metrics_address(self, name: str) -> str:
        return f"{HOST}:{self._processes[name].ready['metrics_port']}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()

    def _run(self, name: str, listen: str, metrics_port: int) -> None:
        module, flags = self._commands[name]
        own = [*flags, "--listen", listen, "--metrics-port", str(metrics_port)]
        process = ServiceProcess(name, module, own, lambda _name, line: self._log.append(line), self._changed)
        self._processes[name] = process
        process.start()
        with self._changed:
            self._changed.wait_for(lambda: process.ready or process.exit_code is not None, READY_S)
        assert process.ready, "\n".join(self._log[-20:])
