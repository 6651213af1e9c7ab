"""Thousands of requests, most of them bad, leave nothing behind."""

import asyncio
import os
import random
import re
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from checkpoint.initial import create_checkpoint
from tandem.v1 import language_pb2_grpc
from tests.language_service.process import BLOCK_BYTES, CONFIG, TAG, Request, Running, image, running, start, text

NUM_REQUESTS = int(os.environ.get("TANDEM_LEAK_REQUESTS", "1000"))  # the goal is 10,000, which takes minutes
NUM_AT_ONCE = 24
MOST_GROWTH_BYTES = 16 * 2**20  # of resident memory. One leaked tensor per request would be far more.

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60 + NUM_REQUESTS)]


async def test_requests_that_end_in_every_way_leave_nothing_behind(tmp_path: Path) -> None:
    """With preemption, shared prefixes and drafts."""
    create_checkpoint(tmp_path, TAG, CONFIG)
    flags = ("--kv-cache-bytes", str(40 * BLOCK_BYTES), "--max-running", "12", "--max-waiting", "22")
    drafting = ("--max-drafts", "4", "--max-step-tokens", "64")
    with running(tmp_path, "--tags", TAG, *flags, *drafting) as service:
        rng = random.Random(1)
        await _send(service, rng, 200)  # allocates everything that is allocated only once
        before = _resident_bytes(service)
        outcomes = await _send(service, rng, NUM_REQUESTS)
        service.until_idle()
        growth = _resident_bytes(service) - before
        assert service.metric("tandem_language_failed_steps_total") == 0
        assert service.metric("tandem_language_preemptions_total") > 0
        codes = _codes(service)
        print(f"{NUM_REQUESTS} requests: {dict(outcomes)}, resident memory {growth / 2**20:+.1f} MiB")
    expected = {"OK", "CANCELLED", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    assert codes <= expected
    assert outcomes.keys() <= expected | {"HIDDEN"}
    assert min(outcomes[each] for each in ("OK", "CANCELLED", "DEADLINE_EXCEEDED")) > 0
    assert "INVALID_ARGUMENT" in codes
    assert growth < MOST_GROWTH_BYTES


async def _send(service: Running, rng: random.Random, count: int) -> Counter[str]:
    """Send `count` requests. Count how they ended."""
    slots = asyncio.Semaphore(NUM_AT_ONCE)
    async with grpc.aio.insecure_channel(service.address) as channel:
        stub = language_pb2_grpc.LanguageServiceStub(channel)

        async def one(seed: int) -> str:
            async with slots:
                return await _ask(stub, random.Random(seed), service.vision_digest)

        return Counter(await asyncio.gather(*(one(rng.getrandbits(32)) for _ in range(count))))


async def _ask(stub: Any, rng: random.Random, digest: bytes) -> str:
    timeout_s = rng.choice([0.02, 0.1, 20, 20, 20])
    call = stub.Generate(_prompt(rng, digest), timeout=timeout_s)
    patience = rng.choice([0, 3, 10**6, 10**6, 10**6])  # messages read before cancelling
    try:
        async for _ in call:
            patience -= 1
            if patience < 0:
                call.cancel()
    except grpc.aio.AioRpcError as error:
        # grpc.aio raises this instead of the server's status if the server ends the call during a write
        # (github.com/grpc/grpc/issues/36066). The server's metrics have the real status.
        return "HIDDEN" if error.details() == "Internal error from Core" else error.code().name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"


async def _prompt(rng: random.Random, digest: bytes) -> AsyncIterator[Request]:
    """Yield a random prompt.

    Many share a prefix, and about every fourth is bad.
    """
    yield start(max_tokens=rng.randint(1, 120), temperature=rng.choice([0.0, 0.8]), seed=rng.getrandbits(16))
    yield text(*range(10, 10 + rng.choice([5, 16, 40])))
    for _ in range(rng.randint(0, 2)):
        await asyncio.sleep(rng.choice([0, 0, 0.01]))
        if rng.random() < 0.15:
            yield image(rng.choice([digest, bytes(32)]), visual_key=b"short")
        else:
            yield image(digest, seed=rng.randrange(4))
    yield text(*(rng.randrange(CONFIG.language.vocab_size) for _ in range(rng.randint(1, 20))))


def _codes(service: Running) -> set[str]:
    """Return every status in the metrics of the service."""
    with urllib.request.urlopen(f"http://127.0.0.1:{service.metrics_port}/metrics", timeout=10) as page:
        content = page.read().decode()
    return set(re.findall(r'^tandem_rpc_requests_total{code="(\w+)".*/Generate"', content, re.MULTILINE))


def _resident_bytes(service: Running) -> int:
    service.until_idle()
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:"))
