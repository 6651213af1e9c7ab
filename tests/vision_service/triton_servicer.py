"""Triton's gRPC service in this process, with faults on demand."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from checkpoint.exports import Export, Profile, Range
from vision_service.backends import digest_parameter

NUM_TOKENS, WIDTH = 32, 64  # of the tiny model
_DTYPES = {"FP32": np.float32, "FP16": np.float16, "BF16": np.uint16}


def tokens_of(pixels_B3SS: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return tokens that depend on the image only, [B, N, D]."""
    means_B = pixels_B3SS.mean(axis=(1, 2, 3))
    places_ND = np.arange(NUM_TOKENS * WIDTH, dtype=np.float32).reshape(NUM_TOKENS, WIDTH)
    return np.asarray(means_B[:, None, None] + places_ND / 256, np.float32)


def export(precision: str = "float32") -> Export:
    """Return the record of an export without files."""
    return Export(
        kind="onnx",
        precision=precision,  # type: ignore[arg-type]
        vision_digest=bytes(32),
        files={},
        tools={},
        profile=Profile(batch=Range(min=1, best=1)),
        max_error=0,
        mean_error=0,
    )


class TritonServicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # has no types
    """Encodes images, or fails as its fields say."""

    def __init__(self, digest: bytes, version: str) -> None:
        self.digest, self.version = digest, version
        self.ready = True
        self.data_type = "FP32"
        self.factor = 1.0  # of the tokens
        self.num_missing_bytes = 0  # of the answer
        self.error: tuple[grpc.StatusCode, str] | None = None
        self.gate = asyncio.Event()  # answers wait for it
        self.gate.set()
        self.num_started = self.num_cancelled = 0
        self.regions: dict[str, str] = {}  # keys by name
        self.requests: list[Any] = []

    async def ModelConfig(self, request: Any, _context: Any) -> Any:  # noqa: N802
        response = service_pb2.ModelConfigResponse()
        response.config.parameters[digest_parameter(self.version)].string_value = self.digest.hex()
        return response

    async def ModelReady(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=self.ready)

    async def SystemSharedMemoryRegister(self, request: Any, _context: Any) -> Any:  # noqa: N802
        self.regions[request.name] = request.key
        return service_pb2.SystemSharedMemoryRegisterResponse()

    async def SystemSharedMemoryUnregister(self, request: Any, _context: Any) -> Any:  # noqa: N802
        del self.regions[request.name]
        return service_pb2.SystemSharedMemoryUnregisterResponse()

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        self.num_started += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if self.error is not None:
            await context.abort(*self.error)
        pixels = await self._pixels(request, context)
        tokens = self.factor * tokens_of(pixels)
        if self.data_type == "BF16":
            content = (tokens.view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            content = tokens.astype(_DTYPES[self.data_type]).tobytes()
        response = service_pb2.ModelInferResponse(
            raw_output_contents=[content[: len(content) - self.num_missing_bytes]]
        )
        response.outputs.add(name="tokens", datatype=self.data_type, shape=tokens.shape)
        return response

    async def _pixels(self, request: Any, context: Any) -> NDArray[np.float32]:
        [tensor] = request.inputs
        if request.raw_input_contents:
            [content] = request.raw_input_contents
        else:
            name = tensor.parameters["shared_memory_region"].string_param
            if name not in self.regions:
                await context.abort(grpc.StatusCode.NOT_FOUND, f"Unable to find shared memory region: '{name}'")
            memory = SharedMemory(self.regions[name])
            assert memory.buf is not None
            content = bytes(memory.buf[: tensor.parameters["shared_memory_byte_size"].int64_param])
            memory.close()
        return np.frombuffer(content, np.float32).reshape(tensor.shape)


@asynccontextmanager
async def serving(servicer: TritonServicer) -> AsyncIterator[str]:
    """Serve for the block, and yield the address."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        servicer.gate.set()
        await server.stop(None)
