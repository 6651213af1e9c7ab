"""A cluster for tests: the controllers of Kubernetes that the manifests need.

It has Deployments, pods with probes, Services with names, disruption budgets and network policies. It has no behaviour
that Kubernetes lacks. Where a manifest needs more, it fails.
"""

import asyncio
import itertools
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from ipaddress import IPv4Network

from tests.k8s import network_policies, services
from tests.k8s.deployments import is_rolled_out, next_changes
from tests.k8s.evictions import may_evict
from tests.k8s.kubelet import Kubelet, Runtime
from tests.k8s.objects import RESTARTED_AT, Object, ObjectStore, Pod, template_hash
from tests.k8s.services import NameServer, endpoints, forwarding, host_names, is_headless

KNOWN_KINDS = {
    *("Namespace", "ServiceAccount", "PriorityClass", "ConfigMap", "Secret", "Service", "Deployment", "Pod"),
    *("PodDisruptionBudget", "NetworkPolicy", "PersistentVolumeClaim"),
}
_POLL_S = 0.1


class Cluster:
    """Two nodes, their pods and the controllers."""

    def __init__(
        self,
        store: ObjectStore,
        runtime: Runtime,
        names: NameServer | None,
        *,
        service_network: IPv4Network | None = None,
    ) -> None:
        """Create an empty cluster.

        Args:
            store: the desired objects.
            runtime: runs the pods.
            names: answers for the names of Services. None in tests of the controller alone.
            service_network: cluster addresses. With it, nftables forwards them and enforces policies. Without it,
                names of Services resolve to pods, and policies have no effect.
        """
        self.store = store
        self.pods: list[Pod] = []
        self.nodes = {"node-a": True, "node-b": True}  # whether pods may be scheduled there
        self.names = names
        self._runtime = runtime
        self._service_network = service_network
        self._addresses: dict[str, str] = {}
        self._workers: dict[Pod, tuple[Kubelet, asyncio.Task[None]]] = {}
        self._endings: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._numbers = itertools.count(1)
        self._applied = ""
        self.failure: Exception | None = None  # of a controller

    # Commands of an operator.

    def apply(self, objects: Sequence[Object]) -> None:
        """Do `kubectl apply`.

        Raises:
            NotImplementedError: an object is of a kind that this cluster does not know.
        """
        if unknown := {one["kind"] for one in objects} - KNOWN_KINDS:
            raise NotImplementedError(f"objects of the kinds {unknown}")
        self.store.apply(objects)
        self._wake.set()

    def delete(self, kind: str, name: str) -> None:
        """Do `kubectl delete`. Pods of a deleted Deployment end."""
        self.store.delete(kind, name)
        self._wake.set()

    def scale(self, name: str, replicas: int) -> None:
        """Do `kubectl scale`."""
        self.store.get("Deployment", name)["spec"]["replicas"] = replicas
        self._wake.set()

    def restart(self, name: str) -> None:
        """Do `kubectl rollout restart`."""
        metadata = self.store.get("Deployment", name)["spec"]["template"]["metadata"]
        metadata.setdefault("annotations", {})[RESTARTED_AT] = str(time.time())
        self._wake.set()

    async def drain(self, node: str) -> None:
        """Evict the pods of a node as their budgets allow."""
        self.nodes[node] = False
        while remaining := [pod for pod in self.pods if pod.node == node]:
            for pod in remaining:
                if not pod.deleting and may_evict(pod, self.pods, self.store):
                    self._end(pod)
            await asyncio.sleep(_POLL_S)

    def uncordon(self, node: str) -> None:
        self.nodes[node] = True

    async def signal(self, pod: Pod, number: int) -> None:
        """Send a signal to the first process of a pod."""
        await self._runtime.signal(pod, pod.spec["containers"][0]["name"], number)

    async def exec(self, pod: Pod, *command: str) -> str:
        """Do `kubectl exec` in the first container.

        Raises:
            RuntimeError: the command fails.
        """
        return await self._runtime.exec(pod, pod.spec["containers"][0]["name"], command)

    # Status.

    def pods_of(self, deployment: str) -> list[Pod]:
        return [pod for pod in self.pods if pod.owner == deployment]

    def rolled_out(self, *deployments: str) -> bool:
        """Return whether updates are complete and old pods gone."""
        return all(
            is_rolled_out(one := self.store.get("Deployment", name), self._template(one), self.pods_of(name))
            for name in deployments
        )

    async def wait_until(self, is_true: Callable[[], bool], within_s: float, doing: str = "") -> float:
        """Wait for a state and return the seconds.

        Raises:
            AssertionError: the time is over. The message describes all pods.
        """
        started_s = time.monotonic()
        while not is_true():
            if self.failure is not None:
                raise self.failure
            assert time.monotonic() - started_s < within_s, f"not within {within_s} s: {doing}\n{self.describe()}"
            await asyncio.sleep(_POLL_S)
        return time.monotonic() - started_s

    async def wait_rolled_out(self, *deployments: str, within_s: float = 180) -> float:
        """Wait for a rollout and the end of old pods."""
        return await self.wait_until(lambda: self.rolled_out(*deployments), within_s, f"roll out {deployments}")

    def describe(self) -> str:
        """Describe the pods, one a line."""
        return "\n".join(
            f"{pod.name} {pod.node} {pod.ip} ready={pod.ready} deleting={pod.deleting} restarts={pod.restarts} "
            f"{' | '.join(pod.events[-4:])} {pod.termination_message[-500:]}"
            for pod in self.pods
        )

    # Controllers.

    async def run(self) -> None:
        """Reconcile until cancelled, or until a controller fails."""
        while True:
            self._wake.clear()
            try:
                self._reconcile()
            except Exception as error:
                self.failure = error
                raise
            with suppress(TimeoutError):
                async with asyncio.timeout(_POLL_S):
                    await self._wake.wait()

    async def stop(self) -> None:
        """End all pods at once."""
        for _, task in self._workers.values():
            task.cancel()
        for ending in self._endings:
            ending.cancel()
        await asyncio.gather(*self._endings, *(task for _, task in self._workers.values()), return_exceptions=True)
        await asyncio.gather(*(self._runtime.remove(pod) for pod in self.pods), return_exceptions=True)

    def _reconcile(self) -> None:
        self._raise_failures()
        deployments = {one["metadata"]["name"]: one for one in self.store.of("Deployment")}
        for name, deployment in deployments.items():
            template = self._template(deployment)
            changes = next_changes(deployment, template, self.pods_of(name), time.monotonic())
            for pod in changes.delete:
                self._end(pod)
            for _ in range(changes.create):
                self._create(deployment, template)
        alone = {one["metadata"]["name"]: one for one in self.store.of("Pod")}
        for name in alone.keys() - {pod.name for pod in self.pods}:
            self._start(self._pod(alone[name], name))
        for pod in self.pods:
            if not pod.deleting and (pod.owner not in deployments if pod.owner else pod.name not in alone):
                self._end(pod)
        self._publish()

    def _raise_failures(self) -> None:
        for pod, (_, task) in self._workers.items():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise RuntimeError(f"the pod {pod.name} cannot run") from error

    def _template(self, deployment: Object) -> str:
        return template_hash(deployment["spec"]["template"])

    def _create(self, deployment: Object, template: str) -> None:
        name = deployment["metadata"]["name"]
        made = {**deployment["spec"]["template"]}
        made["metadata"] = {"namespace": deployment["metadata"].get("namespace", "default"), **made["metadata"]}
        pod = self._pod(made, f"{name}-{template[:6]}-{next(self._numbers)}")
        pod.owner, pod.template = name, template
        pod.labels["pod-template-hash"] = template
        self._start(pod)

    def _pod(self, one: Object, name: str) -> Pod:
        metadata = one["metadata"]
        return Pod(name, metadata.get("namespace", "default"), dict(metadata.get("labels", {})), one["spec"])

    def _start(self, pod: Pod) -> None:
        free = [node for node, schedulable in self.nodes.items() if schedulable]
        pod.node = min(free, key=lambda node: sum(one.node == node and one.owner == pod.owner for one in self.pods))
        pod.created_s = time.monotonic()
        self.pods.append(pod)
        kubelet = Kubelet(pod, self._runtime, self._wake.set)
        self._workers[pod] = (kubelet, asyncio.create_task(kubelet.run()))

    def _end(self, pod: Pod) -> None:
        pod.deleting = True
        self._endings.add(asyncio.create_task(self._terminate(pod)))
        self._publish()

    async def _terminate(self, pod: Pod) -> None:
        kubelet, task = self._workers[pod]
        task_ended = asyncio.create_task(kubelet.terminate())
        await asyncio.wait({task_ended})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.pods.remove(pod)
        del self._workers[pod]
        self._wake.set()
        task_ended.result()

    def _publish(self) -> None:
        """Publish names, cluster addresses and policies, where they changed."""
        if self.names is None:
            return
        names: dict[str, list[str]] = {}
        forwards: list[str] = []
        for service in self.store.of("Service"):
            targets, name = endpoints(service, self.pods), host_names(service)
            if is_headless(service) or not self._service_network:
                names[name] = targets
                continue
            address = self._addresses.setdefault(name, str(self._service_network[len(self._addresses) + 1]))
            names[name] = [address]
            forwards += forwarding(service, address, targets)
        self.names.publish(names)
        if self._service_network:
            self._load(services.ruleset(forwards, str(self._service_network)) + self._policies())

    def _policies(self) -> str:
        namespaces = {
            one["metadata"]["name"]: {
                "kubernetes.io/metadata.name": one["metadata"]["name"],
                **one["metadata"].get("labels", {}),
            }
            for one in self.store.of("Namespace")
        }
        assert self.names is not None
        dns = Pod("dns", "kube-system", {"k8s-app": "kube-dns"}, {}, ip=self.names.address)
        namespaces["kube-system"] = {"kubernetes.io/metadata.name": "kube-system"}
        pods = [pod for pod in self.pods if pod.ip]
        return network_policies.ruleset(self.store.of("NetworkPolicy"), [dns, *pods], namespaces)

    def _load(self, rules: str) -> None:
        if rules != self._applied:
            done = subprocess.run(["nft", "-f", "-"], input=rules, encoding="utf-8", capture_output=True)
            assert done.returncode == 0, f"{done.stderr}\n{rules}"
            self._applied = rules


@asynccontextmanager
async def running(cluster: Cluster) -> AsyncIterator[Cluster]:
    """Run the controllers for the block, then end all pods."""
    assert cluster.names is not None
    cluster.names.start()
    controllers = asyncio.create_task(cluster.run())
    try:
        yield cluster
        if controllers.done():
            controllers.result()
    finally:
        controllers.cancel()
        await asyncio.gather(controllers, return_exceptions=True)
        await cluster.stop()
        cluster.names.stop()
