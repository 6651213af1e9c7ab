"""Tokens a second through gateways of one and several workers.

The fake language service sends tokens without a pause, so the processes take as much of the cores as they get. Each
gateway has the same number of connections, because the kernel shares out connections between workers, not requests.
"""

import asyncio
import statistics
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import grpc

from benchmarks.tools.processes import address_of
from benchmarks.tools.report import Report
from chassis.channels import channel_options
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES
from tandem.stack import ServiceProcess
from tandem.v1 import gateway_pb2, gateway_pb2_grpc, sampling_pb2

STREAMS = (64, 256)
_CONNECTIONS = 16
_TOKENS = 32  # length of an answer
_SECONDS = 5.0  # of one measurement

Rates = dict[tuple[int, int], list[float]]  # tokens a second by number of workers and of streams


async def measure_throughput(gateways: Mapping[int, ServiceProcess], rounds: int) -> Rates:
    """Return the tokens a second of each gateway.

    They take turns.

    Args:
        gateways: by their number of workers.
        rounds: measurements of each.
    """
    message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="What is this?")])
    sampling = sampling_pb2.SamplingOptions(max_tokens=_TOKENS, ignore_eos=True)
    question = gateway_pb2.GatewayGenerateRequest(messages=[message], sampling=sampling)
    rates: Rates = {(workers, streams): [] for streams in STREAMS for workers in gateways}
    async with AsyncExitStack() as stack:
        stubs = {
            workers: [await _connect(service, stack) for _ in range(_CONNECTIONS)]
            for workers, service in gateways.items()
        }
        for _ in range(rounds):
            for (workers, streams), taken in rates.items():
                taken.append(await _rate(stubs[workers], question, streams))
    return rates


def add_throughput(report: Report, rates: Rates) -> None:
    """Add the medians, and their ratio to one worker."""
    for (workers, streams), taken in rates.items():
        name = f"{streams} streams, --workers {workers}: tokens a second"
        report.details[name] = taken
        report.add(name, statistics.median(taken), "tokens/s")
        if workers > 1:
            ratios = [several / one for several, one in zip(taken, rates[1, streams], strict=True)]
            report.add(f"{streams} streams: --workers {workers} against one", statistics.median(ratios), "x")


async def _connect(service: ServiceProcess, stack: AsyncExitStack) -> Any:
    """Return a stub with a connection of its own."""
    options = [*channel_options(DEFAULT_MAX_MESSAGE_BYTES), ("grpc.use_local_subchannel_pool", 1)]
    channel = grpc.aio.insecure_channel(address_of(service), options=options)
    return gateway_pb2_grpc.GatewayStub(await stack.enter_async_context(channel))


async def _rate(stubs: list[Any], question: gateway_pb2.GatewayGenerateRequest, streams: int) -> float:
    """Return the tokens a second of streams that never rest."""
    started_s = time.perf_counter()
    ends_s = started_s + _SECONDS

    async def ask(stub: Any) -> int:
        num_tokens = 0
        while time.perf_counter() < ends_s:
            async for response in stub.Generate(question):
                num_tokens += response.HasField("delta")
        return num_tokens

    total = sum(await asyncio.gather(*(ask(stubs[number % len(stubs)]) for number in range(streams))))
    return total / (time.perf_counter() - started_s)
