"""Probe containers as the kubelet does."""

import asyncio
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import Literal

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.k8s.objects import Object

Check = Callable[[Object, str, float], Awaitable[bool]]  # probe, address of the pod, timeout in seconds
Verdict = Literal["success", "failure", "open"]


class ProbeCounter:
    """Counts results in a row until a threshold is reached."""

    def __init__(self, probe: Object) -> None:
        self._needed = {True: probe.get("successThreshold", 1), False: probe.get("failureThreshold", 3)}
        self._last: bool | None = None
        self._in_a_row = 0

    def add(self, succeeded: bool) -> Verdict:
        """Count a result. 'open' means that neither threshold is reached."""
        self._in_a_row = self._in_a_row + 1 if succeeded == self._last else 1
        self._last = succeeded
        if self._in_a_row < self._needed[succeeded]:
            return "open"
        return "success" if succeeded else "failure"


async def check(probe: Object, ip: str, timeout_s: float) -> bool:
    """Run a probe once, on a connection of its own."""
    try:
        async with asyncio.timeout(timeout_s):
            if "grpc" in probe:
                return await _check_grpc(ip, probe["grpc"]["port"], probe["grpc"].get("service", ""), timeout_s)
            if "tcpSocket" in probe:
                _, writer = await asyncio.open_connection(ip, probe["tcpSocket"]["port"])
                writer.close()
                return True
            if "httpGet" in probe:
                url = f"http://{ip}:{probe['httpGet']['port']}{probe['httpGet'].get('path', '/')}"
                return await asyncio.to_thread(_get, url, timeout_s)
    except (OSError, TimeoutError, grpc.RpcError):
        return False
    raise NotImplementedError(f"a probe of the kind {', '.join(probe)}")


def with_port_numbers(probe: Object, container: Object) -> Object:
    """Return the probe with the number of a named port."""
    numbers = {port["name"]: port["containerPort"] for port in container.get("ports", []) if "name" in port}
    return {
        key: {**value, "port": numbers.get(value["port"], value["port"])}
        if isinstance(value, dict) and "port" in value
        else value
        for key, value in probe.items()
    }


async def _check_grpc(ip: str, port: int, service: str, timeout_s: float) -> bool:
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(f"{ip}:{port}", options=options) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s, wait_for_ready=True)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _get(url: str, timeout_s: float) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:
            return bool(200 <= answer.status < 400)
    except urllib.error.URLError:
        return False
