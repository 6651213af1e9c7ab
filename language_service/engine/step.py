"""Compute one step: a forward pass, then a token choice."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from language_service.engine.generation import PagedGeneration
from language_service.engine.runner import Runner
from language_service.sampling import Choice, choose_with_drafts
from language_service.scheduling import Batch


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens that a step chose, and its time."""

    choices: list[list[Choice | None]]  # one list per chunk, empty if it does not sample
    started_s: float
    seconds: float

    @property
    def num_accepted(self) -> int:
        """Drafts that were accepted."""
        return sum(len(choices) - 1 for choices in self.choices if choices)


def compute_step(runner: Runner, batch: Batch, generations: Sequence[PagedGeneration]) -> StepResult:
    """Run the forward pass of a batch and choose tokens.

    Args:
        runner: decoder and cache.
        batch: chunks to compute.
        generations: the request of each chunk.
    """
    started_s = time.perf_counter()
    images = [generation.images for generation in generations]
    logits_BV = runner.forward(batch.chunks, batch.fresh_blocks, images)
    pairs = zip(batch.chunks, generations, strict=True)
    sampling = [(generation.state, chunk.drafts) for chunk, generation in pairs if chunk.samples]
    states, drafts = [state for state, _ in sampling], [tokens for _, tokens in sampling]
    chosen = iter(choose_with_drafts(logits_BV, states, drafts))
    choices = [next(chosen) if chunk.samples else [] for chunk in batch.chunks]
    return StepResult(choices, started_s, time.perf_counter() - started_s)
