"""Decide which tokens each step computes, in plain Python."""

from language_service.scheduling.drafts import PromptLookup
from language_service.scheduling.scheduler import Batch, Scheduler, SchedulerConfig
from language_service.scheduling.sequence import Chunk, Sequence

__all__ = [
    "Batch",
    "Chunk",
    "PromptLookup",
    "Scheduler",
    "SchedulerConfig",
    "Sequence",
]
