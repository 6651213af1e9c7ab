"""An image encoder over a backend that waits on demand."""

import asyncio
import hashlib
import io
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY

from checkpoint.presets import RESAMPLER_PRESETS
from processing.image_processors import open_image_processor
from vision_service.batcher import BatchConfig
from vision_service.decode_pool import DecodePool
from vision_service.image_encoder import EncodedImage, ImageEncoder, ImageRequest, SharedResources
from vision_service.image_reader import ImageLimits
from vision_service.similar_images import SimilarityIndex
from vision_service.token_cache import TokenCache

DIGEST = bytes(32)


@dataclass
class GatedBackend:
    """Encodes images as their means. Waits while `gate` is clear.

    `batches` records the sizes of its batches.
    """

    name: str = "gated"
    device: str = "cpu"
    precision: str = "float32"
    export_digest: bytes = b""
    num_parameters: int = 0
    num_weight_bytes: int = 0
    fails: bool = False
    batches: list[int] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)

    def encode(self, images: Sequence[NDArray[np.float32]]) -> list[NDArray[np.uint16]]:
        self.batches.append(len(images))
        assert self.gate.wait(10)
        if self.fails:
            raise RuntimeError("broken")
        means_B = np.array([pixels.mean(dtype=np.float32) for pixels in images]).view(np.uint32) >> 16
        return list(np.repeat(means_B.astype(np.uint16), 12).reshape(-1, 3, 4))


@dataclass
class EncoderBench:
    """An image encoder with its resources."""

    encoder: ImageEncoder
    backend: GatedBackend
    resources: SharedResources

    async def ask(self, image: bytes, **fields: Any) -> EncodedImage:
        return await self.encoder.encode(request(image, **fields))


def request(image: bytes, **fields: Any) -> ImageRequest:
    return ImageRequest(**{"image": image, "sha256": hashlib.sha256(image).digest(), **fields})


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return file.getvalue()


def photo(kind: str = "PNG", seed: int = 0, **options: Any) -> bytes:
    """Return a smooth image as a file of format `kind`."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((320, 240), Image.Resampling.BICUBIC).save(file, kind, **options)
    return file.getvalue()


def make_encoder(
    backend: GatedBackend, resources: SharedResources, *, digest: bytes = DIGEST, tag: str = "another-v1.0.0"
) -> ImageEncoder:
    return ImageEncoder(
        tag=tag,
        config=RESAMPLER_PRESETS["tiny"],
        processor=open_image_processor(RESAMPLER_PRESETS["tiny"]),
        digest=digest,
        backend=backend,
        resources=resources,
        batching=BatchConfig(max_wait_s=0),
    )


@asynccontextmanager
async def bench(*, cache_bytes: int = 1 << 20, threshold: float | None = None) -> AsyncIterator[EncoderBench]:
    backend = GatedBackend()
    backend.gate.set()
    similar_images = None if threshold is None else SimilarityIndex(threshold=threshold, max_entries=64)
    decode_pool = DecodePool(
        num_processes=2, max_pending=64, limits=ImageLimits(), with_thumbnails=similar_images is not None
    )
    with ThreadPoolExecutor(1) as executor:
        cache = TokenCache(max_bytes=cache_bytes, ttl_s=None)
        resources = SharedResources(
            decode_pool=decode_pool,
            forward_executor=executor,
            forward_lock=asyncio.Lock(),
            cache=cache,
            similar_images=similar_images,
        )
        encoder = make_encoder(backend, resources, tag="some-v1.0.0")
        yield EncoderBench(encoder, backend, resources)
        backend.gate.set()
        await encoder.close()
    decode_pool.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - the condition changes in another thread
            await asyncio.sleep(0.001)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, {"level": "vision", **labels}) or 0.0
