"""Settings and startup of the vision service."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import torch
from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from chassis.channels import check_target
from chassis.server import Server
from chassis.settings import CommaSeparated
from checkpoint.exports import Precision
from checkpoint.store import ModelStore
from hosting import ModelHost, StageSettings
from tandem.v1 import vision_pb2_grpc
from vision_service.backends import BACKENDS, BackendName, BackendOptions, PerformanceHint, SharedMemory, TritonOptions
from vision_service.batcher import BatchConfig
from vision_service.decode_pool import DECODE_MEMORY_BYTES, DECODE_S, DecodePool
from vision_service.image_encoder import SharedResources
from vision_service.image_reader import PILLOW_MAX_PIXELS, ImageLimits
from vision_service.loader import AUTO, VisionLoader
from vision_service.servicer import SERVICE_NAME, VisionServicer
from vision_service.similar_images import SimilarityIndex
from vision_service.token_cache import TokenCache

_LIMITS, _BATCHING, _TRITON = ImageLimits(), BatchConfig(), TritonOptions()


class VisionSettings(StageSettings):
    """Settings of the vision service."""

    model_config = SettingsConfigDict(env_prefix="TANDEM_VISION_", cli_prog_name="python -m vision_service")

    listen: str = Field("127.0.0.1:50051", description="host:port of the gRPC server. Port 0 picks a free one")
    backend: CommaSeparated = Field(
        ("torch",),
        description=f"libraries that may run the vision half, the first that can: {', '.join(BACKENDS)}. "
        f"Or {AUTO}, the one that was recorded as the fastest",
    )
    precision: Precision = Field(  # type: ignore[assignment]  # one more than the language service has
        "bfloat16", description="data type of weights and arithmetic"
    )
    openvino_hint: PerformanceHint = Field(
        "latency", description="run a batch of openvino on all threads together, or its images side by side"
    )
    triton_address: str = Field(
        _TRITON.address, description="host:port of Triton's gRPC endpoint, for --backend triton"
    )
    triton_model: str = Field(_TRITON.model, description="name of the model in Triton. Empty is the name in the tag")
    triton_timeout_s: float = Field(
        _TRITON.timeout_s, gt=0, allow_inf_nan=False, description="maximum time of one call to Triton, seconds"
    )
    triton_shared_memory: SharedMemory = Field(
        _TRITON.shared_memory, description="memory that carries images to a Triton on the same host"
    )
    max_batch_size: int = Field(_BATCHING.max_batch_size, ge=1, le=1024, description="maximum images in a forward pass")
    max_batch_pixels: int = Field(
        _BATCHING.max_batch_size_sum, ge=1, description="maximum resized pixels of all images in a forward pass"
    )
    max_resized_pixels: int = Field(
        2**20, ge=2**16, description="larger images are scaled down to this many pixels, for models that take any size"
    )
    max_wait_ms: float = Field(
        1000 * _BATCHING.max_wait_s,
        ge=0,
        le=10_000,
        allow_inf_nan=False,
        description="maximum time an image waits for others while the model is idle, milliseconds",
    )
    max_queue: int = Field(
        _BATCHING.max_queue, ge=1, description="maximum decoded images that wait for a forward pass, per model"
    )
    decode_processes: int = Field(2, ge=1, le=256, description="images decoded at once, each in a process of its own")
    decode_processor_s: float = Field(
        DECODE_S, gt=0, le=600, description="maximum processor time to decode an image, seconds"
    )
    decode_memory_bytes: int = Field(
        DECODE_MEMORY_BYTES,
        ge=2**20,
        description="memory for decoding images, bytes. An image that needs more is refused: the default has room for "
        "a JPEG of 52 million pixels and a WebP of 37 million",
    )
    max_decode_queue: int = Field(64, ge=1, description="maximum images that are being decoded or wait for it")
    max_image_bytes: int = Field(_LIMITS.max_bytes, ge=1, description="maximum size of an image file, bytes")
    max_image_pixels: int = Field(
        _LIMITS.max_pixels, ge=1, le=PILLOW_MAX_PIXELS, description="maximum pixels of an image, width x height"
    )
    cache_bytes: int = Field(256 * 2**20, ge=0, description="size of the cache of visual tokens, bytes. 0 turns it off")
    cache_ttl_s: float = Field(
        86_400, gt=0, allow_inf_nan=False, description="lifetime of cached visual tokens, seconds"
    )
    reuse_similar: bool = Field(
        default=False, description="reuse the visual tokens of images that look the same. Needs FAISS"
    )
    similar_threshold: float = Field(
        0.95,
        ge=0.5,
        le=1,
        allow_inf_nan=False,
        description="minimum cosine of thumbnails that count as the same image",
    )
    similar_entries: int = Field(4096, ge=1, le=10**6, description="maximum images in the similarity index, 4 KiB each")

    @field_validator("backend")
    @classmethod
    def _check_backends(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if names != (AUTO,) and (not names or len(set(names)) < len(names) or not set(names) <= set(BACKENDS)):
            raise ValueError(f"choose {AUTO}, or some of {', '.join(BACKENDS)}, each once, the preferred one first")
        return names

    @field_validator("triton_address")
    @classmethod
    def _check_triton_address(cls, address: str) -> str:
        check_target(address)
        return address

    @property
    def backends(self) -> tuple[BackendName, ...]:
        """The backends in order of preference.

        Empty for the recorded one.
        """
        return tuple(name for chosen in self.backend for name in BACKENDS if name == chosen)


@asynccontextmanager
async def open_service(settings: VisionSettings, server: Server) -> AsyncIterator[None]:
    """Load the models and serve them for the block.

    Raises:
        TandemError: a model of `settings.tags` cannot be loaded.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    resources = _open_resources(settings)
    loader = VisionLoader(
        store=ModelStore(settings.models),
        backends=settings.backends,
        options=_backend_options(settings),
        batching=BatchConfig(
            max_batch_size=settings.max_batch_size,
            max_batch_size_sum=settings.max_batch_pixels,
            max_wait_s=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
        ),
        resources=resources,
    )
    models = ModelHost(load=loader.load, health=server.health, service_name=SERVICE_NAME)
    vision_pb2_grpc.add_VisionServiceServicer_to_server(VisionServicer(models), server.grpc)
    server.announce(SERVICE_NAME, settings.callers.name_of)
    try:
        for tag in settings.tags:
            await models.load(tag)
        yield
    finally:
        await models.close()
        resources.decode_pool.close()
        resources.forward_executor.shutdown(cancel_futures=True)


def _backend_options(settings: VisionSettings) -> BackendOptions:
    return BackendOptions(
        precision=settings.precision,
        device=torch.device(settings.device),
        max_batch_size=settings.max_batch_size,
        max_resized_pixels=settings.max_resized_pixels,
        openvino_hint=settings.openvino_hint,
        triton=TritonOptions(
            address=settings.triton_address,
            model=settings.triton_model,
            timeout_s=settings.triton_timeout_s,
            shared_memory=settings.triton_shared_memory,
        ),
        loop=asyncio.get_running_loop(),
    )


def _open_resources(settings: VisionSettings) -> SharedResources:
    similar_images = None
    if settings.reuse_similar:
        similar_images = SimilarityIndex(threshold=settings.similar_threshold, max_entries=settings.similar_entries)
    decode_pool = DecodePool(
        num_processes=settings.decode_processes,
        max_pending=settings.max_decode_queue,
        limits=ImageLimits(max_bytes=settings.max_image_bytes, max_pixels=settings.max_image_pixels),
        memory_bytes=settings.decode_memory_bytes,
        processor_s=settings.decode_processor_s,
        with_thumbnails=settings.reuse_similar,
    )
    decode_pool.start()
    return SharedResources(
        decode_pool=decode_pool,
        forward_executor=ThreadPoolExecutor(1, thread_name_prefix="forward"),
        forward_lock=asyncio.Lock(),
        cache=TokenCache(max_bytes=settings.cache_bytes, ttl_s=settings.cache_ttl_s),
        similar_images=similar_images,
    )
