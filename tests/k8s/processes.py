"""Run pods as plain processes, where containers cannot be had.

Each pod has a loopback address of its own. There are no images, limits, users or network policies.
"""

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.gateway.redis_server import PROGRAM as REDIS
from tests.k8s.objects import Object, ObjectStore, Pod, environment
from tests.k8s.volumes import make_volume

# Programs and folders of the images, by the ones of this machine.
_PROGRAMS = {"python": sys.executable, "redis-server": REDIS}
_CHECKPOINTS = Path(__file__).parents[2] / "models"


class Processes:
    """Starts each container as a process of this machine."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        """Prepare the runtime.

        Args:
            folder: for volumes and logs.
            store: ConfigMaps and Secrets of the pods.
        """
        self._folder = folder
        self._store = store
        self._processes: dict[tuple[str, str], asyncio.subprocess.Process] = {}
        self._num_pods = 0

    async def start(self, pod: Pod) -> None:
        """Start all containers, and set the address of the pod."""
        volumes = {one["name"]: make_volume(self._folder, pod, one, self._store) for one in pod.spec["volumes"]}
        self._num_pods += 1
        pod.ip = f"127.1.{self._num_pods // 250}.{self._num_pods % 250 + 1}"
        if "models" in volumes:
            await asyncio.to_thread(shutil.copytree, _CHECKPOINTS, volumes["models"], dirs_exist_ok=True)
        for container in pod.spec["containers"]:
            await self.start_container(pod, container["name"])

    async def start_container(self, pod: Pod, name: str) -> None:
        """Start a container that has ended."""
        container = next(one for one in pod.spec["containers"] if one["name"] == name)
        command: list[str] = [*container["command"], *container.get("args", [])]
        variables = environment(container, pod, self._store).items()
        with self._log(pod, name).open("ab") as log:
            self._processes[pod.name, name] = await asyncio.create_subprocess_exec(
                _PROGRAMS.get(command[0], command[0]),
                *(self._on_this_machine(one, pod, container) for one in command[1:]),
                env={**os.environ, **{key: self._on_this_machine(value, pod, container) for key, value in variables}},
                stdout=log,
                stderr=log,
            )

    async def wait(self, pod: Pod, name: str) -> int:
        """Wait for a container's end, and return its exit code."""
        code = await self._processes[pod.name, name].wait()
        return code if code >= 0 else 128 - code

    async def signal(self, pod: Pod, name: str, number: int) -> None:
        """Send a signal to a container's first process."""
        with suppress(ProcessLookupError):
            self._processes[pod.name, name].send_signal(number)

    async def log_tail(self, pod: Pod, name: str) -> str:
        """Return the last lines of a container's log."""
        return self._log(pod, name).read_text(errors="replace").strip()[-2048:]

    async def exec(self, pod: Pod, name: str, command: Sequence[str]) -> str:
        """Do nothing, so exec probes succeed.

        The program of the image may not be on this machine.
        """
        return ""

    async def remove(self, pod: Pod) -> None:
        """End the processes, and remove the volumes."""
        for (owner, _), process in self._processes.items():
            if owner == pod.name and process.returncode is None:
                process.kill()
                await process.wait()
        await asyncio.to_thread(shutil.rmtree, self._folder / pod.name, ignore_errors=True)

    def _on_this_machine(self, text: str, pod: Pod, container: Object) -> str:
        """Replace addresses and folders of a container."""
        text = text.replace("0.0.0.0", pod.ip)
        for mount in container.get("volumeMounts", []):
            if text == mount["mountPath"] or text.startswith(mount["mountPath"] + "/"):
                folder = self._folder / pod.name / mount["name"]
                return str(folder) + text.removeprefix(mount["mountPath"])
        return text

    def _log(self, pod: Pod, name: str) -> Path:
        return self._folder / f"{pod.name}-{name}.log"
