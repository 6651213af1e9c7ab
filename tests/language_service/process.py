"""Run the language service as a process."""

import re
import time
import urllib.request
from collections.abc import Sequence
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from chassis.errors import TandemError
from chassis.grpc_errors import from_rpc_error
from checkpoint.manifest import read_manifest
from checkpoint.presets import RESAMPLER_PRESETS
from tandem.v1 import language_pb2, language_pb2_grpc, sampling_pb2, tensor_pb2
from tests import processes
from tests.processes import StageProcess

TAG = "tiny-v1.0.0"
CONFIG = RESAMPLER_PRESETS["tiny"]

BLOCK_BYTES = 16 * CONFIG.language.num_layers * 2 * CONFIG.language.num_kv_heads * CONFIG.language.head_dim * 4

Request = language_pb2.GenerateRequest


class Running(StageProcess):
    """A language service that is ready."""

    module = "language_service"

    @property
    def vision_digest(self) -> bytes:
        """The digest of the vision half that its model needs."""
        return read_manifest(self.models / TAG).language.vision_digest

    @property
    def stub(self) -> Any:
        return language_pb2_grpc.LanguageServiceStub(self.channel)

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10) as page:
            found = re.search(rf'^{name}{{.*tag="{TAG}".*}} (\S+)$', page.read().decode(), re.MULTILINE)
        assert found, name
        return float(found[1])

    def until_idle(self) -> None:
        """Wait until no sequence and no block is in use.

        Fails after ten seconds.
        """
        gauges = {"tandem_language_running", "tandem_language_waiting", "tandem_language_kv_blocks_used"}
        deadline = time.monotonic() + 10
        while left := {name: value for name in gauges if (value := self.metric(name))}:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)


def running(models: Path, *flags: str) -> AbstractContextManager[Running]:
    """Return a language service for a `with` block."""
    return processes.running(Running, models, *flags)


def start(tag: str = TAG, **sampling: Any) -> Request:
    options = sampling_pb2.SamplingOptions(**{"ignore_eos": True, **sampling})
    return Request(start=language_pb2.GenerateStart(tag=tag, sampling=options))


def text(*token_ids: int) -> Request:
    return Request(text=language_pb2.TextSegment(token_ids=token_ids))


def whole(start: Request, text: Request) -> Request:
    """Return both messages as one."""
    return Request(whole=language_pb2.WholePrompt(start=start.start, text=text.text))


def random_bytes(seed: int, count: int) -> bytes:
    """Return `count` finite bfloat16 numbers."""
    values = np.random.default_rng(seed).standard_normal(count, dtype=np.float32)
    return (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def image(vision_digest: bytes, seed: int = 0, **fields: Any) -> Request:
    shape = (CONFIG.num_visual_tokens, CONFIG.language.width)
    data = random_bytes(seed, prod(shape))
    tensor = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=shape, data=data)
    fields = {"embeddings": tensor, "visual_key": bytes([seed]) * 32, "vision_digest": vision_digest, **fields}
    return Request(image=language_pb2.ImageSegment(visual_tokens=tensor_pb2.VisualTokens(**fields)))


def ask(service: Running, *requests: Request, timeout: float = 20) -> tuple[list[int], language_pb2.GenerateFinished]:
    """Return the tokens and the last message of an answer."""
    responses = list(service.stub.Generate(iter(requests), timeout=timeout))
    assert responses[0].WhichOneof("event") == "prefilled"
    assert all(response.WhichOneof("event") == "tokens" for response in responses[1:-1])
    tokens = [token for response in responses[1:-1] for token in response.tokens.token_ids]
    return tokens, responses[-1].finished


def refusal(service: Running, requests: Sequence[Request], timeout: float = 10) -> TandemError:
    """Return the error that refuses a prompt."""
    with pytest.raises(grpc.RpcError) as caught:
        list(service.stub.Generate(iter(requests), timeout=timeout))
    return from_rpc_error(caught.value)
