"""A process like the services, and its log."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Queue
from typing import Any, Self

# A service like the real ones: settings, open_service, run_service. Generate streams the requested number of deltas.
PROGRAM = '''
import asyncio, sys, logging, threading, time, warnings
from contextlib import asynccontextmanager
from pydantic_settings import SettingsConfigDict
import structlog
import chassis.process, chassis.server
from chassis.errors import FailedPrecondition
from chassis.server import run_service
from chassis.settings import ServiceSettings, load_settings
from chassis.vital import vital
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

log = structlog.get_logger()

class ExampleSettings(ServiceSettings):
    """Serves examples."""
    model_config = SettingsConfigDict(env_prefix="TANDEM_EXAMPLE_")
    start: str = "well"
    stop: str = "well"
    close_limit_s: float = 60  # for the service
    stop_limit_s: float = 60  # for all steps of the end together

def die():
    with vital("example"):
        raise SystemExit

class Servicer(gateway_pb2_grpc.GatewayServicer):
    async def Generate(self, request, context):
        if request.routing_key == "die":
            threading.Thread(target=die).start()
            return
        try:
            for number in range(int(request.routing_key)):
                yield gateway_pb2.GatewayGenerateResponse(delta=gateway_pb2.TextDelta(text=str(number)))
                await asyncio.sleep(0.02)
        finally:
            log.info("freed")

@asynccontextmanager
async def open_service(settings, server):
    chassis.process.STOP_S, chassis.server._CLOSE_S = settings.stop_limit_s, settings.close_limit_s
    if settings.start == "refused":
        raise FailedPrecondition("The model does not fit.", reason="DOES_NOT_FIT")
    if settings.start == "broken":
        raise RuntimeError("a bug")
    if settings.start == "slowly":
        log.info("loading")
        await asyncio.sleep(60)
    logging.getLogger("some.library").warning("a library speaks")
    warnings.warn("a library warns")
    gateway_pb2_grpc.add_GatewayServicer_to_server(Servicer(), server.grpc)
    server.announce("tandem.v1.Gateway")
    yield
    if settings.stop == "slowly":
        await asyncio.sleep(3600)
    if settings.stop == "never":
        time.sleep(3600)  # hangs the event loop
    log.info("closed")

run_service("example", load_settings(ExampleSettings, sys.argv[1:]), open_service)
'''


class Process:
    """A process that runs PROGRAM or another, and its log.

    As a context, it is killed at the end of the block.
    """

    def __init__(self, *flags: str, program: Sequence[str] = ("-c", PROGRAM)) -> None:
        self.lines: list[dict[str, Any]] = []
        self._queue: Queue[str | None] = Queue()
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, *program, *flags]
        self.popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.popen.kill()
        self.popen.wait()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        with self.popen.stderr:
            for line in self.popen.stderr:
                self._queue.put(line)
        self._queue.put(None)

    def wait_for(self, event: str, timeout_s: float = 60) -> dict[str, Any]:
        """Return the next log line of `event`.

        Every line on the way must be JSON.
        """
        while True:
            line = self._queue.get(timeout=timeout_s)
            assert line is not None, f"the process ended without {event!r}: {self.lines}"
            self.lines.append(json.loads(line))
            if self.lines[-1]["event"] == event:
                return self.lines[-1]

    def end(self, timeout_s: float = 60) -> int:
        """Wait until the process ends and return its status."""
        code = self.popen.wait(timeout_s)
        while (line := self._queue.get(timeout=60)) is not None:
            self.lines.append(json.loads(line))
        return code

    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]
