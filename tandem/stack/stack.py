"""The whole stack on this machine: two stages and a gateway as three processes on loopback.

    with Stack(StackConfig(models=Path("models"), release="tandem-demo-v1.1.0")) as stack:
        print(tandem.Client(stack.address).ask("What is this?", images=[Path("bag.png")]).text)

`tandem up`, the demo and the benchmarks run on it. Production runs the same three commands in containers instead.
"""

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from chassis.channels import open_blocking_channel
from chassis.errors import FailedPrecondition, Unavailable
from checkpoint.tags import split_release
from tandem.stack.process import ServiceProcess

HOST = "127.0.0.1"
POLL_S = 0.02
KILL_AFTER_S = 5.0  # beyond the drain, before a process that does not end is killed
OnLog = Callable[[str, str], None]  # service, line; called from one thread a service


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """What to run. The environment (`TANDEM_VISION_*`, ...) reaches the services; what stands here goes before it."""

    models: Path  # the model store
    release: str  # a tag, or 'vision tag,language tag'
    port: int = 0  # of the gateway; 0 takes a free one
    # None, here and below, is what the services take by themselves.
    precision: Literal["float32", "bfloat16"] | None = None
    device: str | None = None  # of both stages: cpu or cuda:<index>
    threads: int | None = None  # of each stage
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    drain_s: float = 10.0  # longest wait for running requests when it stops
    ready_timeout_s: float = 600.0
    vision_flags: Sequence[str] = ()  # further flags of one service, for measurements
    language_flags: Sequence[str] = ()
    gateway_flags: Sequence[str] = ()


class Stack:
    """Three running services; a context manager that is ready when entered and leaves no process behind.

    Enter it on a thread that outlives it: Linux kills the services when that thread ends, however it ends.
    """

    def __init__(self, config: StackConfig, on_log: OnLog | None = None) -> None:
        self.config = config
        self._changed = threading.Condition()
        self._on_log = on_log or (lambda _service, _line: None)
        self._services: dict[str, ServiceProcess] = {}

    @property
    def address(self) -> str:
        """Where the gateway listens, host:port."""
        return self.address_of("gateway")

    @property
    def pids(self) -> dict[str, int]:
        """Process id of each service by name: vision, language, gateway."""
        return {name: service.pid for name, service in self._services.items()}

    def address_of(self, service: str) -> str:
        """Where `vision`, `language` or `gateway` listens, host:port."""
        return f"{HOST}:{self._services[service].ready['port']}"

    def metrics_address(self, service: str) -> str:
        """Where `vision`, `language` or `gateway` shows its Prometheus metrics, host:port."""
        return f"{HOST}:{self._services[service].ready['metrics_port']}"

    def metrics_url(self, service: str) -> str:
        """Return the page of metrics there."""
        return f"http://{self.metrics_address(service)}/metrics"

    def start(self) -> None:
        """Start all three and wait until they are ready. Whatever it raises, `stop` is still to be called.

        Raises:
            FailedPrecondition: the gateway's port is taken.
            Unavailable: a service stopped or was not ready in time; the message says which and why.
        """
        _check_port_free(self.config.port)
        vision_tag, language_tag = split_release(self.config.release)
        self._spawn("vision", "vision_service", self._stage_flags(vision_tag, self.config.vision_flags))
        self._spawn("language", "language_service", self._stage_flags(language_tag, self.config.language_flags))
        self._wait_until_ready()
        self._spawn("gateway", "gateway", self._gateway_flags())
        self._wait_until_ready()
        self._wait_until_serving()

    def wait(self) -> None:
        """Block while all services run.

        Raises:
            Unavailable: one stopped; the others still run.
        """
        with self._changed:
            while True:
                self._check_alive()
                self._changed.wait()

    def stop(self) -> None:
        """Stop the gateway, then the stages, gracefully; kill what does not end. A second Ctrl-C kills at once."""
        try:
            # The gateway first: answers under way still need both stages.
            for names in (("gateway",), ("vision", "language")):
                leaving = [self._services[name] for name in names if name in self._services]
                for service in leaving:
                    service.terminate()
                for service in leaving:
                    service.wait(self.config.drain_s + KILL_AFTER_S)
        finally:
            for service in self._services.values():
                service.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C as well
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, name: str, module: str, flags: Sequence[str]) -> None:
        process = ServiceProcess(name, module, [*self._common_flags(), *flags], self._on_log, self._changed)
        self._services[name] = process
        process.start()

    def _common_flags(self) -> list[str]:
        # JSON whatever stands around us: the ready line is read from it.
        return _flags({"log-format": "json", "log-level": self.config.log_level, "drain-s": self.config.drain_s})

    def _stage_flags(self, tag: str, further: Sequence[str]) -> list[str]:
        config = self.config
        flags = {"listen": f"{HOST}:0", "models": config.models.resolve(), "tags": tag}
        choices = {"precision": config.precision, "device": config.device, "threads": config.threads}
        return [*_flags({**flags, **choices}), *further]

    def _gateway_flags(self) -> list[str]:
        flags = {"listen": f"{HOST}:{self.config.port}", "models": self.config.models.resolve()}
        stages = {"vision": self.address_of("vision"), "language": self.address_of("language")}
        return [*_flags({**flags, "release": self.config.release, **stages}), *self.config.gateway_flags]

    def _wait_until_ready(self) -> None:
        with self._changed:
            is_ready = self._changed.wait_for(self._all_ready, timeout=self.config.ready_timeout_s)
        if not is_ready:
            late = ", ".join(name for name, service in self._services.items() if not service.ready)
            raise Unavailable(
                f"Not ready within {self.config.ready_timeout_s:g} s: {late}.", reason="SERVICE_NOT_READY"
            )

    def _wait_until_serving(self) -> None:
        """Wait until the gateway has found its release on both stages, so that the first request is answered."""
        model = f"tandem.v1.Gateway/{split_release(self.config.release)[1]}"
        with open_blocking_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(round(self.config.ready_timeout_s / POLL_S)):
                self._check_alive()
                with contextlib.suppress(grpc.RpcError):  # NOT_FOUND until the gateway has asked once
                    answer = health.Check(health_pb2.HealthCheckRequest(service=model), timeout=KILL_AFTER_S)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(POLL_S)
        raise Unavailable("The gateway did not find its release on both stages.", reason="SERVICE_NOT_READY")

    def _all_ready(self) -> bool:
        self._check_alive()
        return all(service.ready for service in self._services.values())

    def _check_alive(self) -> None:
        for name, service in self._services.items():
            if service.exit_code is not None:
                when = "" if service.ready else " before it was ready"
                why = f": {service.last_words}" if service.last_words else f", exit code {service.exit_code}."
                raise Unavailable(f"The {name} service stopped{when}{why}", reason="SERVICE_STOPPED")


def interrupt_on_signals() -> None:
    """Let SIGTERM and a closed terminal do what Ctrl-C does, and Ctrl-C work where a shell had it ignored.

    Under `nohup`, which ignores it, a closed terminal changes nothing.
    """
    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        signal.signal(number, signal.default_int_handler)


def _flags(values: Mapping[str, object]) -> list[str]:
    """Return what is set as flags."""
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def _check_port_free(port: int) -> None:
    """Refuse a port someone listens on; gRPC itself would share it (SO_REUSEPORT) and answer every other call."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise FailedPrecondition(
                f"Port {port} on {HOST} cannot be used ({error.strerror}); choose another with --port.",
                reason="PORT_BUSY",
            ) from error
