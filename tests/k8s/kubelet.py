"""Run one pod: start, probes, restarts and the end."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from tests.k8s.objects import Object, Pod
from tests.k8s.probes import Check, ProbeCounter, check, with_port_numbers

FIRST_BACKOFF_S, MAX_BACKOFF_S = 10.0, 300.0
DEFAULT_GRACE_S = 30


class Runtime(Protocol):
    """Runs the containers of pods."""

    async def start(self, pod: Pod) -> None:
        """Start all containers, and set the address of the pod.

        Raises:
            LookupError: the pod needs an object that does not exist.
        """

    async def start_container(self, pod: Pod, name: str) -> None:
        """Start a container that has ended."""

    async def wait(self, pod: Pod, name: str) -> int:
        """Wait for a container and return its exit code."""

    async def signal(self, pod: Pod, name: str, number: int) -> None:
        """Send a signal to a container's first process."""

    async def log_tail(self, pod: Pod, name: str) -> str:
        """Return the last lines of a container's log."""

    async def exec(self, pod: Pod, name: str, command: Sequence[str]) -> str:
        """Run a command in a container and return its output.

        Raises:
            RuntimeError: it fails. The message is its error output.
        """

    async def remove(self, pod: Pod) -> None:
        """Remove what is left of the pod."""


class Kubelet:
    """Runs one pod until it is deleted.

    A container that ends is started again: at once, then after 10 s, 20 s and so on. A failed liveness or startup probe
    ends its container, with preStop and the pod's grace.
    """

    def __init__(self, pod: Pod, runtime: Runtime, on_change: Callable[[], None], probe: Check = check) -> None:
        self._pod = pod
        self._runtime = runtime
        self._on_change = on_change
        self._check = probe
        self._ready: dict[str, bool] = {container["name"]: False for container in pod.spec["containers"]}
        self._running: set[str] = set()
        self._exits: dict[str, asyncio.Task[int]] = {}
        self._starting = asyncio.Lock()

    async def run(self) -> None:
        """Start the pod and keep it running until cancelled."""
        while not await self._try_to_start():  # noqa: ASYNC110  (nothing tells when the object exists)
            await asyncio.sleep(1)
        try:
            async with asyncio.TaskGroup() as tasks:
                for container in self._pod.spec["containers"]:
                    tasks.create_task(self._run_container(container))
        finally:
            for waiting in self._exits.values():
                waiting.cancel()

    async def terminate(self) -> None:
        """End the pod: preStop, SIGTERM, grace, SIGKILL."""
        async with self._starting:
            pass
        grace_s = self._grace_s()
        containers = [one for one in self._pod.spec["containers"] if one["name"] in self._running]
        await asyncio.gather(*(self._stop_container(one, grace_s) for one in containers))
        await self._runtime.remove(self._pod)

    async def _try_to_start(self) -> bool:
        async with self._starting:
            if self._pod.deleting:
                return False
            try:
                await self._runtime.start(self._pod)
            except LookupError as error:  # a missing ConfigMap or Secret: the kubelet tries until it exists
                self._event(f"CreateContainerConfigError: {error}")
                return False
            return True

    async def _run_container(self, container: Object) -> None:
        name, backoff_s = container["name"], 0.0
        while True:
            self._running.add(name)
            exited = self._exits[name] = asyncio.create_task(self._runtime.wait(self._pod, name))
            probes = asyncio.create_task(self._probe(container))
            both: set[asyncio.Task[Any]] = {exited, probes}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if probes.done() and not exited.done():
                self._event(f"Killing: {probes.result()} failed")
                await self._stop_container(container, self._grace_s(container, probes.result()))
            code = await exited
            probes.cancel()
            self._running.discard(name)
            self._set_ready(name, ready=False)
            await self._note_exit(container, code)
            if not self._pod.deleting:
                await asyncio.sleep(backoff_s)
            backoff_s = min(max(FIRST_BACKOFF_S, 2 * backoff_s), MAX_BACKOFF_S)
            async with self._starting:
                if self._pod.deleting:
                    return
                self._pod.restarts += 1
                await self._runtime.start_container(self._pod, name)

    async def _probe(self, container: Object) -> str:
        """Probe a container until a probe demands its end."""
        startup = container.get("startupProbe")
        if startup and not await self._until_started(container, startup):
            return "startupProbe"
        readiness = asyncio.create_task(self._watch_readiness(container))
        try:
            await self._until_dead(container)
        finally:
            readiness.cancel()
            with suppress(asyncio.CancelledError):
                await readiness
        return "livenessProbe"

    async def _until_started(self, container: Object, probe: Object) -> bool:
        counter = ProbeCounter(probe)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            if (verdict := counter.add(await self._probe_once(container, probe))) != "open":
                return verdict == "success"
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _until_dead(self, container: Object) -> None:
        """Return when the liveness probe has failed."""
        probe = container.get("livenessProbe", {})
        counter = ProbeCounter(probe)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            if probe and not self._pod.deleting:
                succeeded = await self._probe_once(container, probe)
                if counter.add(succeeded) == "failure" and not self._pod.deleting:
                    return
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _watch_readiness(self, container: Object) -> None:
        probe = container.get("readinessProbe")
        if probe is None:
            self._set_ready(container["name"], ready=True)
            return
        counter = ProbeCounter(probe)
        await asyncio.sleep(probe.get("initialDelaySeconds", 0))
        while True:
            if (verdict := counter.add(await self._probe_once(container, probe))) != "open":
                self._set_ready(container["name"], ready=verdict == "success")
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def _probe_once(self, container: Object, probe: Object) -> bool:
        timeout_s = probe.get("timeoutSeconds", 1)
        if "exec" not in probe:
            return await self._check(with_port_numbers(probe, container), self._pod.ip, timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                await self._runtime.exec(self._pod, container["name"], probe["exec"]["command"])
        except (RuntimeError, TimeoutError):
            return False
        return True

    async def _stop_container(self, container: Object, grace_s: float) -> None:
        name, deadline_s = container["name"], time.monotonic() + grace_s
        if hook := container.get("lifecycle", {}).get("preStop"):
            assert "sleep" in hook, "only the action sleep is known"
            await asyncio.sleep(min(grace_s, hook["sleep"]["seconds"]))
        await self._runtime.signal(self._pod, name, signal.SIGTERM)
        try:
            async with asyncio.timeout(max(0, deadline_s - time.monotonic())):
                await asyncio.shield(self._exits[name])
        except TimeoutError:
            self._event("Killed: the grace period is over")
            await self._runtime.signal(self._pod, name, signal.SIGKILL)
            await self._exits[name]

    def _grace_s(self, container: Object | None = None, probe: str = "") -> float:
        """Return the grace of the pod or failed probe."""
        of_pod: float = self._pod.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S)
        return float((container or {}).get(probe, {}).get("terminationGracePeriodSeconds", of_pod))

    async def _note_exit(self, container: Object, code: int) -> None:
        if code and container.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            self._pod.termination_message = await self._runtime.log_tail(self._pod, container["name"])
        self._event(f"Exited: code {code}")

    def _set_ready(self, name: str, *, ready: bool) -> None:
        self._ready[name] = ready
        if self._pod.ready != all(self._ready.values()):
            self._pod.ready = not self._pod.ready
            self._pod.ready_since_s = time.monotonic()
            self._event("Ready" if self._pod.ready else "Unready")

    def _event(self, text: str) -> None:
        self._pod.events.append(text)
        self._on_change()
