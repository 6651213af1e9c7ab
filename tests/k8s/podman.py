"""Run pods as real containers with podman."""

import asyncio
import json
import os
import shutil
import signal as signals
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.objects import Object, ObjectStore, Pod, environment
from tests.k8s.volumes import make_volume

# Podman would run these by rules of its own. The test controller runs them by those of the kubelet.
# It would also publish every container port on the node.
_KUBELET_FIELDS = ("startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "envFrom", "ports")
NETWORK = "tandem"
_CONFIG = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
dns_servers = ["{dns}"]
dns_searches = ["{namespace}.svc.cluster.local", "svc.cluster.local", "cluster.local"]
dns_options = ["ndots:5"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
network_config_dir = "{networks}"
"""


class Podman:
    """Starts each pod with `podman kube play`.

    Every pod has an address of its own in a routed network. Volumes are folders of the node, as in the kubelet.
    """

    def __init__(self, folder: Path, store: ObjectStore, *, subnet: str, dns: str, namespace: str) -> None:
        """Write the configuration of podman.

        Args:
            folder: for configuration and the pods' volumes.
            store: ConfigMaps, Secrets and claims of the pods.
            subnet: addresses of the pods.
            dns: address of the name server.
            namespace: searched first for short names.
        """
        self._folder = folder
        self._store = store
        self._pids: dict[tuple[str, str], int] = {}
        networks = folder / "networks"
        networks.mkdir(parents=True)
        config = folder / "containers.conf"
        config.write_text(_CONFIG.format(dns=dns, networks=networks, namespace=namespace))
        ranges = {"type": "host-local", "dataDir": str(folder / "addresses"), "ranges": [[{"subnet": subnet}]]}
        plugin = {"type": "ptp", "ipMasq": False, "ipam": {**ranges, "routes": [{"dst": "0.0.0.0/0"}]}}
        network = {"cniVersion": "0.4.0", "name": NETWORK, "plugins": [plugin]}
        (networks / f"{NETWORK}.conflist").write_text(json.dumps(network))
        self._environment = {**os.environ, "CONTAINERS_CONF": str(config)}

    async def start(self, pod: Pod) -> None:
        """Start all containers, and set the address of the pod."""
        file = self._folder / f"{pod.name}.yaml"
        file.write_text(yaml.safe_dump(self._manifest(pod)))
        await self._podman("kube", "play", "--network", NETWORK, str(file))
        for container in pod.spec["containers"]:
            await self._read_pid(pod, container["name"])
        infra = await self._inspect(pod.name, "{{.InfraContainerID}}")
        networks = await self._inspect(infra, "{{json .NetworkSettings.Networks}}")
        pod.ip = json.loads(networks)[NETWORK]["IPAddress"]

    async def start_container(self, pod: Pod, name: str) -> None:
        """Start a container that has ended."""
        await self._podman("start", f"{pod.name}-{name}")
        await self._read_pid(pod, name)

    async def wait(self, pod: Pod, name: str) -> int:
        """Wait for a container and return its exit code."""
        pid = self._pids[pod.name, name]
        with suppress(ProcessLookupError):
            if pid:  # 0 if the container ended before its id was read
                await _wait_for_process(pid)
        while (state := await self._inspect(f"{pod.name}-{name}", "{{.State.Status}}")) not in ("exited", "stopped"):
            assert state in ("created", "initialized", "running", "stopping"), state
            await asyncio.sleep(0.05)
        return int(await self._inspect(f"{pod.name}-{name}", "{{.State.ExitCode}}"))

    async def signal(self, pod: Pod, name: str, number: int) -> None:
        """Send a signal to a container's first process."""
        if pid := self._pids[pod.name, name]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    async def log_tail(self, pod: Pod, name: str) -> str:
        """Return the last lines of a container's log."""
        return (await self._podman("logs", "--tail", "80", f"{pod.name}-{name}")).strip()[-2048:]

    async def remove(self, pod: Pod) -> None:
        """Remove the containers and the volumes."""
        await self._podman("pod", "rm", "--force", "--time", "0", pod.name)
        await asyncio.to_thread(shutil.rmtree, self._folder / pod.name, ignore_errors=True)

    async def exec(self, pod: Pod, name: str, command: Sequence[str]) -> str:
        """Run a command in a container and return its output."""
        return await self._podman("exec", f"{pod.name}-{name}", *command)

    async def remove_leftovers(self) -> None:
        """Remove the pods of a run that was killed."""
        await self._podman("pod", "rm", "--force", "--all", "--time", "0")

    def _manifest(self, pod: Pod) -> Object:
        spec: Object = json.loads(json.dumps(pod.spec))
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            variables = environment(container, pod, self._store)
            for field in _KUBELET_FIELDS:
                container.pop(field, None)
            container["env"] = [{"name": key, "value": value} for key, value in variables.items()]
            container["imagePullPolicy"] = "Never"
            if "/" not in container["image"]:
                container["image"] = f"localhost/{container['image']}"
            # Podman takes the user of a container from here only.
            container["securityContext"] = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        # Podman ends the network of a pod with its last container. Kubernetes keeps it.
        first = spec["containers"][0]
        pause = {"name": "pause", "image": first["image"], "command": ["sleep", "infinity"]}
        spec["containers"].append({**pause, "securityContext": first["securityContext"]})
        spec["volumes"] = [self._volume(pod, one) for one in spec.get("volumes", [])]
        spec["restartPolicy"] = "Never"
        metadata = {"name": pod.name, "labels": pod.labels}
        kept = ("containers", "initContainers", "volumes", "restartPolicy", "securityContext")
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": {key: spec[key] for key in kept if key in spec},
        }

    def _volume(self, pod: Pod, volume: Object) -> Object:
        path = make_volume(self._folder, pod, volume, self._store)
        return {"name": volume["name"], "hostPath": {"path": str(path), "type": "Directory"}}

    async def _read_pid(self, pod: Pod, name: str) -> None:
        self._pids[pod.name, name] = int(await self._inspect(f"{pod.name}-{name}", "{{.State.Pid}}"))

    async def _inspect(self, name: str, template: str) -> Any:
        return (await self._podman("inspect", "--format", template, name)).strip()

    async def _podman(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *("podman", *arguments),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, error = await process.communicate()
        except asyncio.CancelledError:
            with suppress(ProcessLookupError):
                process.send_signal(signals.SIGTERM)
            raise
        if process.returncode:
            raise RuntimeError(f"podman {' '.join(arguments[:3])}: {error.decode().strip()}")
        return out.decode() + (error.decode() if arguments[0] == "logs" else "")


async def _wait_for_process(pid: int) -> None:
    """Wait for the end of another parent's process.

    Raises:
        ProcessLookupError: it has ended already.
    """
    file = os.pidfd_open(pid)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(file, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(file)
        os.close(file)
