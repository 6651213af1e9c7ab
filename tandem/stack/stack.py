"""Run two stages, a gateway and an HTTP door on loopback.

    with Stack(StackConfig(models=Path("models"), release="tandem-demo-v1.1.0")) as stack:
        print(tandem.Client(stack.address).ask("What is this?", images=[Path("bag.png")]).text)

Used by `tandem up`, the demo and the benchmarks. Production runs the same three commands in containers.
"""

import contextlib
import signal
import sys
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
from chassis.listening import bind_error
from checkpoint.tags import split_release
from tandem.stack.process import ServiceProcess

HOST = "127.0.0.1"
POLL_S = 0.02
KILL_AFTER_S = 5.0  # grace after the drain before a process is killed
OnLog = Callable[[str, str], None]  # (service, line), called from one thread per service


@dataclass(frozen=True, slots=True, kw_only=True)
class StackConfig:
    """Configuration of a stack.

    The services also read their environment (`TANDEM_VISION_*`, ...). Values set here take precedence.
    """

    models: Path  # the model store
    release: str  # a tag, or 'vision tag,language tag'
    port: int = 0  # of the gateway, 0 picks a free one
    http_port: int | None = None  # of the HTTP door, 0 picks a free one. None runs none
    # None, here and below, leaves the choice to the services.
    precision: Literal["float32", "bfloat16"] | None = None
    device: str | None = None  # of both stages: 'cpu' or 'cuda:<index>'
    threads: int | None = None  # of each stage
    log_level: Literal["debug", "info", "warning", "error"] | None = None
    drain_s: float = 10.0  # longest wait for running requests at the stop
    ready_timeout_s: float = 600.0
    language_python: str = sys.executable  # Python of the language service, such as that of vLLM's environment
    vision_flags: Sequence[str] = ()  # more flags of one service, for measurements
    language_flags: Sequence[str] = ()
    gateway_flags: Sequence[str] = ()
    http_flags: Sequence[str] = ()


class Stack:
    """The running services, as a context manager.

    The services are ready when the block starts and gone when it ends. Enter it on a thread that outlives the block:
    Linux kills the services when that thread ends.
    """

    def __init__(self, config: StackConfig, on_log: OnLog | None = None) -> None:
        self.config = config
        self._changed = threading.Condition()
        self._on_log = on_log or (lambda _service, _line: None)
        self._services: dict[str, ServiceProcess] = {}

    @property
    def address(self) -> str:
        """Address of the gateway, host:port."""
        return self.address_of("gateway")

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by service: vision, language, gateway, http."""
        return {name: service.pid for name, service in self._services.items()}

    def address_of(self, service: str) -> str:
        """Return the address of a service, host:port.

        Args:
            service: 'vision', 'language', 'gateway' or 'http'.
        """
        return f"{HOST}:{self._services[service].ready['port']}"

    def metrics_address(self, service: str) -> str:
        """Return the address of a service's Prometheus metrics, host:port."""
        return f"{HOST}:{self._services[service].ready['metrics_port']}"

    def metrics_url(self, service: str) -> str:
        """Return the URL of a service's Prometheus metrics."""
        return f"http://{self.metrics_address(service)}/metrics"

    def start(self) -> None:
        """Start all services and wait until they are ready.

        Call `stop` afterwards, even if this raises.

        Raises:
            FailedPrecondition: reason 'PORT_BUSY', a port is taken.
            Unavailable: a service stopped or was not ready in time. The message names it and the reason.
        """
        _check_port_free(self.config.port, "--port")
        if self.config.http_port is not None:
            _check_port_free(self.config.http_port, "--http")
        vision_tag, language_tag = split_release(self.config.release)
        self._spawn("vision", "vision_service", self._stage_flags(vision_tag, self.config.vision_flags))
        self._spawn("language", "language_service", self._stage_flags(language_tag, self.config.language_flags))
        self._wait_until_ready()
        self._spawn("gateway", "gateway", self._gateway_flags())
        self._wait_until_ready()
        self._wait_until_serving()
        if self.config.http_port is not None:
            self._spawn("http", "http_gateway", self._http_flags(self.config.http_port))
            self._wait_until_ready()

    def wait(self) -> None:
        """Block while all services run.

        Raises:
            Unavailable: reason 'SERVICE_STOPPED', a service stopped. The others still run.
        """
        with self._changed:
            while True:
                self._check_alive()
                self._changed.wait()

    def stop(self) -> None:
        """Stop the services gracefully, then kill those that remain.

        A second Ctrl-C kills them at once.
        """
        try:
            # The door first, then the gateway: running answers still need those behind them.
            for names in (("http",), ("gateway",), ("vision", "language")):
                stopping = [self._services[name] for name in names if name in self._services]
                for service in stopping:
                    service.terminate()
                for service in stopping:
                    service.wait(self.config.drain_s + KILL_AFTER_S)
        finally:
            for service in self._services.values():
                service.kill()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:  # Ctrl-C included
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, name: str, module: str, flags: Sequence[str]) -> None:
        python = self.config.language_python if name == "language" else sys.executable
        arguments = [*self._common_flags(), *flags]
        process = ServiceProcess(name, module, arguments, self._on_log, self._changed, python=python)
        self._services[name] = process
        process.start()

    def _common_flags(self) -> list[str]:
        # Always JSON, because the ready line is parsed.
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

    def _http_flags(self, port: int) -> list[str]:
        flags = _flags({"listen": f"{HOST}:{port}", "gateway": self.address})
        return [*flags, *self.config.http_flags]

    def _wait_until_ready(self) -> None:
        with self._changed:
            is_ready = self._changed.wait_for(self._all_ready, timeout=self.config.ready_timeout_s)
        if not is_ready:
            late = ", ".join(name for name, service in self._services.items() if not service.ready)
            raise Unavailable(
                f"Not ready within {self.config.ready_timeout_s:g} s: {late}. Their logs say why.",
                reason="SERVICE_NOT_READY",
            )

    def _wait_until_serving(self) -> None:
        """Wait until the gateway serves its release on both stages."""
        model = f"tandem.v1.Gateway/{split_release(self.config.release)[1]}"
        with open_blocking_channel(self.address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            for _ in range(round(self.config.ready_timeout_s / POLL_S)):
                self._check_alive()
                with contextlib.suppress(grpc.RpcError):  # NOT_FOUND until the gateway has asked the stages
                    answer = health.Check(health_pb2.HealthCheckRequest(service=model), timeout=KILL_AFTER_S)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                time.sleep(POLL_S)
        raise Unavailable(
            f"The gateway did not find {self.config.release} on both stages: their logs say why.",
            reason="SERVICE_NOT_READY",
        )

    def _all_ready(self) -> bool:
        self._check_alive()
        return all(service.ready for service in self._services.values())

    def _check_alive(self) -> None:
        for name, service in self._services.items():
            if service.exit_code is not None:
                when = "" if service.ready else " before it was ready"
                why = f": {service.last_error}" if service.last_error else f", exit code {service.exit_code}."
                raise Unavailable(f"The {name} service stopped{when}{why}", reason="SERVICE_STOPPED")


def interrupt_on_signals() -> None:
    """Make SIGTERM and a closed terminal act like Ctrl-C.

    Ctrl-C itself is enabled too, because a shell starts background commands with it ignored. Under `nohup` a closed
    terminal has no effect.
    """
    hangup = (signal.SIGHUP,) if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else ()
    for number in (signal.SIGINT, signal.SIGTERM, *hangup):
        signal.signal(number, signal.default_int_handler)


def _flags(values: Mapping[str, object]) -> list[str]:
    """Return the flags of all values that are not None."""
    return [text for name, value in values.items() if value is not None for text in (f"--{name}", str(value))]


def _check_port_free(port: int, flag: str) -> None:
    """Raise FailedPrecondition if a service cannot use its port.

    The service itself would say so only after the models have loaded.
    """
    if (error := bind_error(f"{HOST}:{port}")) is not None:
        raise FailedPrecondition(
            f"Port {port} on {HOST} cannot be used ({error.strerror}); choose another with {flag}.",
            reason="PORT_BUSY",
        ) from error
