"""One hosted model over a backend that waits when told to, with the caches the service puts around it."""

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from checkpoint.presets import PRESETS
from vision_service.batcher import BatchConfig
from vision_service.decoding import DecodePool
from vision_service.hosted import Encoded, HostedVision, ImageRequest, Shared
from vision_service.image_files import ImageLimits
from vision_service.similar import SimilarImages
from vision_service.token_cache import TokenCache

DIGEST = bytes(32)


@dataclass
class GatedBackend:
    """Encodes an image as its mean; while `gate` is clear, it waits. Keeps the sizes of its batches."""

    name: str = "gated"
    device: str = "cpu"
    precision: str = "float32"
    num_parameters: int = 0
    num_weight_bytes: int = 0
    fails: bool = False
    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def encode(self, pixels_B3SS: NDArray[np.float32]) -> NDArray[np.uint16]:
        self.batches.append(len(pixels_B3SS))
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("broken")
        means_B = pixels_B3SS.mean((1, 2, 3), dtype=np.float32).view(np.uint32) >> 16
        return np.repeat(means_B.astype(np.uint16), 12).reshape(-1, 3, 4)


@dataclass
class Bench:
    """One model with its cache."""

    model: HostedVision
    backend: GatedBackend
    shared: Shared

    async def ask(self, image: bytes, **fields: Any) -> Encoded:
        return await self.model.encode(request(image, **fields))


def request(image: bytes, **fields: Any) -> ImageRequest:
    return ImageRequest(**{"image": image, "sha256": hashlib.sha256(image).digest(), **fields})


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


def photo(kind: str = "PNG", seed: int = 0, **options: Any) -> bytes:
    """Return a smooth image as a file of some kind."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def host(backend: GatedBackend, shared: Shared, *, digest: bytes = DIGEST, tag: str = "another-v1.0.0") -> HostedVision:
    return HostedVision(
        tag=tag,
        config=PRESETS["tiny"],
        digest=digest,
        backend=backend,
        shared=shared,
        batching=BatchConfig(max_wait_s=0),
    )


@asynccontextmanager
async def bench(*, cache_bytes: int = 1 << 20, threshold: float | None = None) -> AsyncIterator[Bench]:
    backend = GatedBackend()
    backend.gate.set()
    similar = None if threshold is None else SimilarImages(threshold=threshold, max_entries=64)
    decoding = DecodePool(num_threads=2, max_pending=64, limits=ImageLimits(), with_thumbnails=similar is not None)
    with ThreadPoolExecutor(1) as forward:
        cache = TokenCache(max_bytes=cache_bytes, ttl_s=None)
        shared = Shared(decoding=decoding, forward=forward, turn=asyncio.Lock(), cache=cache, similar=similar)
        model = host(backend, shared, tag="some-v1.0.0")
        yield Bench(model, backend, shared)
        backend.gate.set()
        await model.close()
    decoding.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for happens in another thread
            await asyncio.sleep(0.001)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"level": "vision", **labels}) or 0.0
