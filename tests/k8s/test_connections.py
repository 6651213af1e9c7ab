"""Clients that are not ours find new gateways."""

import asyncio
import json
import urllib.request
from typing import Any

import grpc
import pytest

from chassis.api_keys import authorization
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, sampling_pb2
from tests.k8s.cluster import Cluster
from tests.k8s.conftest import API_KEY, GATEWAY
from tests.k8s.objects import Pod

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="session")]

AGE_S = 5
QUESTION = gateway_pb2.GatewayGenerateRequest(
    messages=[gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="Is it red?")])],
    sampling=sampling_pb2.SamplingOptions(max_tokens=100, ignore_eos=True),
)


async def num_requests(pod: Pod) -> float:
    """Return the questions that a gateway has answered."""
    url = f"http://{pod.ip}:9090/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
    lines = [line for line in text.splitlines() if line.startswith("tandem_gateway_requests_total")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def test_a_plain_client_reaches_a_new_gateway_without_a_failed_stream(stable: Cluster) -> None:
    deployment = stable.store.get("Deployment", "gateway")
    variable = {"name": "TANDEM_GATEWAY_MAX_CONNECTION_AGE_S", "value": str(AGE_S)}
    deployment["spec"]["template"]["spec"]["containers"][0]["env"].append(variable)
    await stable.wait_rolled_out("gateway")
    (old,) = stable.pods_of("gateway")
    # gRPC spreads calls over the addresses that it knows, and asks for others only when a connection ends.
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    ending, outcomes = asyncio.Event(), []

    async def ask(stub: Any) -> None:
        while not ending.is_set():
            call = stub.Generate(QUESTION, metadata=[authorization(API_KEY)])
            outcomes.append([one async for one in call][-1].HasField("finished"))

    async with grpc.aio.insecure_channel(GATEWAY, options=[("grpc.service_config", json.dumps(config))]) as channel:
        stub = gateway_pb2_grpc.GatewayStub(channel)
        async with asyncio.TaskGroup() as streams:
            for _ in range(8):
                streams.create_task(ask(stub))
            async with asyncio.timeout(120):
                while len(outcomes) < 8:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
                stable.scale("gateway", 2)
                await stable.wait_rolled_out("gateway")
                (new,) = set(stable.pods_of("gateway")) - {old}
                while not await num_requests(new):  # noqa: ASYNC110
                    await asyncio.sleep(1)
            ending.set()
    assert all(outcomes)
    print(f"\n{len(outcomes)} streams ended, those of the last connections at a new gateway")
