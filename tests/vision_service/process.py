"""The vision service as a real process, and requests to it."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from tandem.v1 import vision_pb2, vision_pb2_grpc

TAG = "tiny-v1.0.0"


@dataclass(frozen=True)
class Running:
    """A process that is ready."""

    process: subprocess.Popen[str]
    address: str
    channel: grpc.Channel
    metrics_port: int

    @property
    def stub(self) -> Any:
        return vision_pb2_grpc.VisionServiceStub(self.channel)


def command(models: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "vision_service", "--models", str(models), "--listen", "127.0.0.1:0"),
        *("--precision", "float32", "--threads", "1", "--log-format", "json", *flags),
    ]


@contextmanager
def running(models: Path, *flags: str) -> Iterator[Running]:
    process = subprocess.Popen(command(models, *flags), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        ready = next(event for line in process.stderr if (event := json.loads(line))["event"] == "ready")
        # The pipe must not fill up while the process logs.
        threading.Thread(target=process.stderr.read, daemon=True).start()
        address = f"127.0.0.1:{ready['port']}"
        with grpc.insecure_channel(address) as channel:
            yield Running(process, address, channel, ready["metrics_port"])
    finally:
        process.kill()
        process.wait()


def request(image: bytes, **fields: Any) -> vision_pb2.EncodeRequest:
    fields = {"tag": TAG, "image_sha256": hashlib.sha256(image).digest(), **fields}
    return vision_pb2.EncodeRequest(image=image, **fields)


def fresh(image: bytes, **fields: Any) -> vision_pb2.EncodeRequest:
    """Return a request that no cache can answer: its tenant was never there before."""
    return request(image, cache_salt=os.urandom(16), **fields)


def values(response: vision_pb2.EncodeResponse) -> np.ndarray[Any, np.dtype[np.float32]]:
    bits = np.frombuffer(response.visual_tokens.embeddings.data, "<u2").astype(np.uint32) << 16
    return bits.view(np.float32)
