"""Run sequences through a model, with an engine from `choice`."""

from language_service.engine.choice import EngineName, Follower, join_engine, open_engine
from language_service.engine.interface import (
    Engine,
    EngineConfig,
    Event,
    Finished,
    FinishReason,
    Generation,
    Prefilled,
    Tokens,
)
from language_service.kernels import AttentionName, KernelName
from language_service.model import Grid

__all__ = [
    "AttentionName",
    "Engine",
    "EngineConfig",
    "EngineName",
    "Event",
    "FinishReason",
    "Finished",
    "Follower",
    "Generation",
    "Grid",
    "KernelName",
    "Prefilled",
    "Tokens",
    "join_engine",
    "open_engine",
]
