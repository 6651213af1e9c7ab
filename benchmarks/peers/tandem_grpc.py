"""Our language service, measured by a gRPC client."""

import asyncio
import atexit
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import uvloop

from benchmarks.peers.checkpoints import TAG
from benchmarks.peers.engines import CACHE_BYTES, THREADS
from benchmarks.peers.protocol import Complete, Prompts, Recorder, Recording, serve
from benchmarks.tools.processes import address_of, running
from tandem.v1 import language_pb2, language_pb2_grpc, sampling_pb2


def load(root: Path) -> tuple[str, Complete]:
    """Start the service, to be stopped with this process."""
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    flags = ["--models", str(root / "tandem"), "--tags", TAG, "--threads", str(THREADS)]
    service = ExitStack()
    atexit.register(service.close)
    process = service.enter_context(running("language_service", [*flags, "--kv-cache-bytes", str(CACHE_BYTES)]))
    channel = runner.run(connect(address_of(process)))
    stub = language_pb2_grpc.LanguageServiceStub(channel)

    def complete(prompts: Prompts, num_tokens: int) -> Recording:
        return runner.run(complete_all(stub, prompts, num_tokens))

    return "tandem, through gRPC", complete


async def connect(address: str) -> grpc.aio.Channel:
    """Connect to a language service."""
    channel = grpc.aio.insecure_channel(address)
    await channel.channel_ready()
    return channel


async def complete_all(
    stub: "language_pb2_grpc.LanguageServiceAsyncStub", prompts: Prompts, num_tokens: int
) -> Recording:
    """Send all prompts at once and continue each by `num_tokens`."""
    recorder = Recorder(len(prompts))

    async def ask(index: int) -> None:
        async for response in stub.Generate(_requests(prompts[index], num_tokens)):
            if response.HasField("tokens"):
                recorder.add(index, response.tokens.token_ids)

    await asyncio.gather(*(ask(index) for index in range(len(prompts))))
    return recorder.recording


async def _requests(prompt: Sequence[int], num_tokens: int) -> AsyncIterator[language_pb2.GenerateRequest]:
    sampling = sampling_pb2.SamplingOptions(max_tokens=num_tokens, ignore_eos=True)
    yield language_pb2.GenerateRequest(start=language_pb2.GenerateStart(tag=TAG, sampling=sampling))
    yield language_pb2.GenerateRequest(text=language_pb2.TextSegment(token_ids=prompt))


if __name__ == "__main__":
    serve(load)
