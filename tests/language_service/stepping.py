"""Make a scheduler, add sequences and step it by hand."""

from typing import Any

from language_service.cache.blocks import BlockPool
from language_service.cache.prefix import PrefixHashes, root_hash
from language_service.scheduling.drafts import PromptLookup
from language_service.scheduling.scheduler import Batch, Scheduler, SchedulerConfig
from language_service.scheduling.sequence import Sequence

BLOCK_SIZE = 4


def make_scheduler(*, num_blocks: int = 32, **limits: Any) -> Scheduler:
    limits = {"max_running": 4, "max_waiting": 16, "max_step_tokens": 16, **limits}
    return Scheduler(SchedulerConfig(block_size=BLOCK_SIZE, **limits), BlockPool(num_blocks))


def add(scheduler: Scheduler, num_prompt: int, max_tokens: int | None = 4, priority: int = 0) -> Sequence:
    """Add a sequence that shares no blocks."""
    sequence = Sequence(priority=priority)
    sequence.add_text([1] * num_prompt)
    sequence.max_tokens = max_tokens
    scheduler.add(sequence)
    return sequence


def add_shared(scheduler: Scheduler, token_ids: list[int], max_tokens: int | None = 4, salt: bytes = b"") -> Sequence:
    """Add a sequence that shares blocks with others."""
    root = root_hash(model_digest=bytes(32), salt=salt)
    drafter = PromptLookup(scheduler.config.max_drafts) if scheduler.config.max_drafts else None
    sequence = Sequence(hashes=PrefixHashes(root, block_size=BLOCK_SIZE), drafter=drafter)
    sequence.add_text(token_ids)
    sequence.max_tokens = max_tokens
    scheduler.add(sequence)
    return sequence


def step(scheduler: Scheduler) -> Batch | None:
    """Run one step as the engine does.

    Each chunk that samples adds a token to its answer.
    """
    batch = scheduler.next_batch()
    if batch is None:
        return None
    for chunk in batch.chunks:
        scheduler.advance(chunk)
        if chunk.samples:
            chunk.sequence.add_answer(1)
            if chunk.sequence.num_answer == chunk.sequence.max_tokens:
                scheduler.remove(chunk.sequence)
    return batch


def run(scheduler: Scheduler) -> list[Sequence]:
    """Step until there is no work.

    Returns the sequence of each chosen token, in order.
    """
    order = []
    while (batch := step(scheduler)) is not None:
        scheduler.check()
        order += [chunk.sequence for chunk in batch.chunks if chunk.samples]
    return order


def sizes(batch: Batch | None) -> list[tuple[Sequence, int]]:
    assert batch is not None
    return [(chunk.sequence, len(chunk.token_ids)) for chunk in batch.chunks]
