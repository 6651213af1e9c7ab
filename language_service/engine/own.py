"""Open our own engine: size the cache, warm up, start."""

import asyncio

import structlog

from chassis.errors import FailedPrecondition
from checkpoint.available_memory import available_bytes
from checkpoint.families import LanguageConfig
from checkpoint.weights import LoadedHalf
from language_service.engine.interface import EngineConfig
from language_service.engine.kv_cache import CacheConfig, PagedCache, bytes_per_block
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Runner
from language_service.engine.serving import ServingDecoder
from language_service.kernels import Kernels, choose_kernels
from language_service.scheduling import Chunk, Sequence

_log = structlog.get_logger()


async def open_tandem_engine(half: LoadedHalf, config: EngineConfig, *, tag: str) -> PagedEngine:
    """Return our own engine, as `open_engine` describes."""
    runner = await asyncio.to_thread(_make_runner, half, config, tag)
    return PagedEngine(runner, config.scheduling, tag=tag, model_digest=half.digest, turns=config.turns)


def _make_runner(half: LoadedHalf, config: EngineConfig, tag: str) -> Runner:
    """Return decoder and cache after a first forward pass."""
    model = half.config.language
    decoder = ServingDecoder(model, half.tensors, _choose_kernels(model, config))
    cache = PagedCache(
        model, _size_cache(model, config), dtype=config.dtype, device=config.device, kernels=config.kernels
    )
    _choose_attention(cache, config)
    runner = Runner(decoder, cache)
    # The first pass chooses kernels and allocates memory. Better now than in the first request.
    chunk = Chunk(sequence=Sequence(), start=0, token_ids=[0], blocks=[0], samples=True)
    if not bool(runner.forward([chunk], fresh_blocks=[0]).isfinite().all()):
        raise FailedPrecondition(
            f"The language half of {tag} gives logits that are not finite.", reason="BAD_CHECKPOINT"
        )
    facts, num_tokens = runner.description, cache.config.num_tokens
    _log.info("decoder ready", tag=tag, kernels=facts.kernels)
    _log.info(
        "kv cache ready", tag=tag, num_blocks=facts.num_blocks, num_tokens=num_tokens, num_bytes=facts.num_cache_bytes
    )
    return runner


def _choose_kernels(model: LanguageConfig, config: EngineConfig) -> Kernels:
    try:
        return choose_kernels(model, config.dtype, config.device, config.kernels)
    except ValueError as error:
        raise FailedPrecondition(str(error), reason="NO_KERNEL") from error


def _choose_attention(cache: PagedCache, config: EngineConfig) -> None:
    try:
        cache.choose_attention(config.decode_attention)
    except ValueError as error:
        raise FailedPrecondition(str(error), reason="NO_KERNEL") from error


def _size_cache(model: LanguageConfig, config: EngineConfig) -> CacheConfig:
    """Return as many blocks as the settings allow.

    But never more than all running sequences can fill.
    """
    block_size = config.scheduling.block_size
    block_bytes = bytes_per_block(model, block_size, config.dtype)
    available = available_bytes(config.device)  # once, as it changes
    budget = int(config.cache_fraction * available) if config.cache_bytes is None else config.cache_bytes
    max_useful = config.scheduling.max_running * -(-model.context_length // block_size)
    num_blocks = min(budget // block_bytes, max_useful)
    if num_blocks * block_bytes > available:
        raise FailedPrecondition(
            f"A KV cache of {num_blocks * block_bytes} bytes does not fit beside the weights, {available} bytes are "
            "available. Lower --kv-cache-bytes, or raise the memory limit.",
            reason="NO_MEMORY",
        )
    if num_blocks < 1:
        raise FailedPrecondition(
            f"A KV cache of {budget} bytes has no room for one block of {block_bytes} bytes. "
            "Raise --kv-cache-bytes or --kv-cache-fraction, or free memory.",
            reason="NO_MEMORY",
        )
    return CacheConfig(num_blocks=num_blocks, block_size=block_size)
