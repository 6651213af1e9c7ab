"""Run one stage as a real process for tests over gRPC."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, TypeVar

import grpc


@dataclass(frozen=True)
class StageProcess:
    """A ready process. Subclasses add the RPCs of their stage."""

    module: ClassVar[str]
    python: ClassVar[str] = sys.executable

    process: subprocess.Popen[str]
    models: Path
    port: int
    metrics_port: int
    channel: grpc.Channel

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @classmethod
    def command(cls, models: Path, *flags: str) -> list[str]:
        """Return the command that starts the process."""
        return [
            *(cls.python, "-m", cls.module, "--models", str(models), "--listen", "127.0.0.1:0"),
            *("--precision", "float32", "--threads", "1", "--log-format", "json", *flags),
        ]


P = TypeVar("P", bound=StageProcess)


@contextmanager
def running(kind: type[P], models: Path, *flags: str) -> Iterator[P]:
    """Yield a ready stage, killed when the block ends."""
    # A group of its own, so that its children end with it.
    process = subprocess.Popen(kind.command(models, *flags), stderr=subprocess.PIPE, text=True, process_group=0)
    try:
        assert process.stderr is not None
        log: deque[str] = deque(maxlen=5)
        ready = next((event for line in process.stderr if (event := _event(line, log))["event"] == "ready"), None)
        assert ready is not None, f"the process ended: {''.join(log)}"
        # Read the log, so that the pipe never fills up and blocks the process.
        threading.Thread(target=_drain, args=[process.stderr], daemon=True).start()
        with grpc.insecure_channel(f"127.0.0.1:{ready['port']}") as channel:
            yield kind(process, models, ready["port"], ready["metrics_port"], channel)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _event(line: str, log: deque[str]) -> dict[str, Any]:
    """Return a line of the log, and keep it.

    Libraries write other lines, too.
    """
    log.append(line)
    event: dict[str, Any] = json.loads(line) if line.startswith("{") else {"event": ""}
    return event


def _drain(log: IO[str]) -> None:
    with log:
        log.read()
