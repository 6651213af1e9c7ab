"""Run single containers with podman, as restricted as the manifests do."""

import json
import subprocess
import time
from collections.abc import Sequence
from typing import Any

import tandem

ISOLATED = (
    *("--read-only", "--tmpfs", "/tmp", "--cap-drop", "all", "--security-opt", "no-new-privileges"),
    *("--ulimit", "nofile=4096:4096", "--ulimit", "nproc=4096:4096"),
)
RELEASE = "tandem-demo-v1.1.0"
MODULES = {"gateway": "gateway", "http": "http_gateway", "vision": "vision_service", "language": "language_service"}


def podman(*arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    command = ["podman", "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc", *arguments]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=timeout_s)


def image(name: str) -> str:
    return f"localhost/tandem-{name}:{tandem.__version__}"


class Container:
    """A running service in a container. A context manager."""

    def __init__(self, service: str, *flags: str, network: str, memory: str, name: str = "") -> None:
        """Prepare a container.

        Args:
            service: gateway, http, vision or language.
            flags: of the service, without those for models and release.
            network: 'none', or 'host' for the network of the test.
            memory: limit, for example '512m'.
            name: of the container. The default is that of the service.
        """
        self.name = f"tandem-test-{name or service}"
        release = "--release" if service == "gateway" else "--tags"
        model = () if service == "http" else ("--models", "/store/checkpoints", release, RELEASE)
        own = ("--log-format", "json", *model, *flags)
        store = f"type=image,source={image('models-copy')},destination=/store"
        limits = ("--network", network, "--memory", memory, "--memory-swap", memory)
        self._command = ["run", "--detach", "--name", self.name, "--mount", store, *limits, *ISOLATED]
        self._command += [image(service), *own]

    def __enter__(self) -> "Container":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        podman("rm", "--force", "--time", "0", self.name)

    def start(self) -> None:
        """Start a new container instead of an old one."""
        podman("rm", "--force", "--time", "0", self.name)
        started = podman(*self._command)
        assert started.returncode == 0, started.stderr

    def wait_until_ready(self, timeout_s: float = 90) -> None:
        """Wait for the line 'ready' of the log."""
        end_s = time.monotonic() + timeout_s
        while '"event": "ready"' not in (log := self.log()):
            assert self.state()["Running"], log
            assert time.monotonic() < end_s, log
            time.sleep(0.3)

    def log(self) -> str:
        return podman("logs", self.name).stderr

    def state(self) -> dict[str, Any]:
        """Return the state: Running, ExitCode and others."""
        described = podman("inspect", "--format", "{{json .State}}", self.name)
        assert described.returncode == 0, described.stderr
        found: dict[str, Any] = json.loads(described.stdout)
        return found

    def wait_for_end(self, timeout_s: float = 90) -> int:
        """Wait for the process, and return its exit code."""
        end_s = time.monotonic() + timeout_s
        while (state := self.state())["Running"]:
            assert time.monotonic() < end_s, self.log()
            time.sleep(0.3)
        return int(state["ExitCode"])

    def stop(self, grace_s: int) -> int:
        """Send SIGTERM and return the exit code."""
        stopped = podman("stop", "--time", str(grace_s), self.name)
        assert stopped.returncode == 0, stopped.stderr
        return int(self.state()["ExitCode"])


def run(service: str, command: Sequence[str]) -> str:
    """Run a command without network, and return its output."""
    flags = ("--rm", "--network", "none", "--memory", "768m", *ISOLATED, "--entrypoint", command[0])
    done = podman("run", *flags, image(service), *command[1:])
    assert done.returncode == 0, done.stderr
    return done.stdout
