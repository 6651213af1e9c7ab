"""The language service as a real process, and the messages tests send to it."""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from checkpoint.manifest import read_manifest
from checkpoint.presets import PRESETS
from tandem.v1 import language_pb2, language_pb2_grpc, sampling_pb2, tensor_pb2

TAG = "tiny-v1.0.0"
CONFIG = PRESETS["tiny"]

BLOCK_BYTES = 16 * CONFIG.language.num_layers * 2 * CONFIG.language.num_kv_heads * CONFIG.language.head_dim * 4

Request = language_pb2.GenerateRequest


@dataclass(frozen=True)
class Running:
    """A process that is ready."""

    process: subprocess.Popen[str]
    channel: grpc.Channel
    metrics_port: int
    vision_digest: bytes
    port: int

    @property
    def stub(self) -> Any:
        return language_pb2_grpc.LanguageServiceStub(self.channel)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            found = re.search(rf'^{name}{{.*tag="{TAG}".*}} (\S+)$', page.read().decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def until_idle(self) -> None:
        """Wait until no sequence and no block is held; fail if that takes more than two seconds."""
        held = {"tandem_language_running", "tandem_language_waiting", "tandem_language_kv_blocks_used"}
        deadline = time.monotonic() + 2
        while left := {name: value for name in held if (value := self.metric(name))}:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)


def command(models: Path, *flags: str) -> list[str]:
    return [
        *(sys.executable, "-m", "language_service", "--models", str(models), "--listen", "127.0.0.1:0"),
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
        with grpc.insecure_channel(f"127.0.0.1:{ready['port']}") as channel:
            digest = read_manifest(models / TAG).language.vision_digest
            yield Running(process, channel, ready["metrics_port"], digest, ready["port"])
    finally:
        process.kill()
        process.wait()


def start(tag: str = TAG, **sampling: Any) -> Request:
    options = sampling_pb2.SamplingOptions(**{"ignore_eos": True, **sampling})
    return Request(start=language_pb2.GenerateStart(tag=tag, sampling=options))


def text(*token_ids: int) -> Request:
    return Request(text=language_pb2.TextSegment(token_ids=token_ids))


def image(vision_digest: bytes, seed: int = 0, **fields: Any) -> Request:
    shape = (CONFIG.num_visual_tokens, CONFIG.language.width)
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    tensor = tensor_pb2.Tensor(
        data_type=tensor_pb2.DATA_TYPE_BFLOAT16,
        shape=shape,
        data=(values.view(np.uint32) >> 16).astype("<u2").tobytes(),
    )
    fields = {"embeddings": tensor, "visual_key": bytes([seed]) * 32, "vision_digest": vision_digest, **fields}
    return Request(image=language_pb2.ImageSegment(visual_tokens=tensor_pb2.VisualTokens(**fields)))
