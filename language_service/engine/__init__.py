"""Run sequences: join model, cache, scheduler and sampler."""

from language_service.engine.interface import Engine, Event, Finished, FinishReason, Generation, Prefilled, Tokens
from language_service.engine.kv_cache import CacheConfig, PagedCache, bytes_per_block
from language_service.engine.paged import PagedEngine
from language_service.engine.runner import Piece, Runner
from language_service.engine.serving import ServingDecoder

__all__ = [
    "CacheConfig",
    "Engine",
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "PagedCache",
    "PagedEngine",
    "Piece",
    "Prefilled",
    "Runner",
    "ServingDecoder",
    "Tokens",
    "bytes_per_block",
]
