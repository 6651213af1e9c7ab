"""The vision service as a process, and requests to it."""

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from tandem.v1 import vision_pb2, vision_pb2_grpc
from tests import processes
from tests.processes import StageProcess

TAG = "tiny-v1.0.0"


class Running(StageProcess):
    """A vision service that is ready."""

    module = "vision_service"

    @property
    def stub(self) -> Any:
        return vision_pb2_grpc.VisionServiceStub(self.channel)


def encode(stub: Any, request: vision_pb2.EncodeRequest, timeout: float) -> vision_pb2.EncodeResponse:
    """Return the whole response, its chunks joined."""
    response, *rest = stub.Encode(request, timeout=timeout)
    embeddings = response.visual_tokens.embeddings
    embeddings.data += b"".join(message.data_chunk for message in rest)
    return response  # type: ignore[no-any-return]


def running(models: Path, *flags: str) -> AbstractContextManager[Running]:
    """Run a vision service for the block."""
    return processes.running(Running, models, *flags)


def request(image: bytes, **fields: Any) -> vision_pb2.EncodeRequest:
    fields = {"tag": TAG, "image_sha256": hashlib.sha256(image).digest(), **fields}
    return vision_pb2.EncodeRequest(image=image, **fields)


def fresh(image: bytes, **fields: Any) -> vision_pb2.EncodeRequest:
    """Return a request with a new salt, not cached."""
    return request(image, cache_salt=os.urandom(16), **fields)


def values(response: vision_pb2.EncodeResponse) -> np.ndarray[Any, np.dtype[np.float32]]:
    bits = np.frombuffer(response.visual_tokens.embeddings.data, "<u2").astype(np.uint32) << 16
    return bits.view(np.float32)
