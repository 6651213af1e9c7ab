"""Compute one step: a forward pass, then a token choice."""

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from language_service.engine.generation import PagedGeneration
from language_service.engine.runner import Runner
from language_service.sampling import Choice, advance, choose_with_drafts, costly_workers, wait_for_masks
from language_service.scheduling import Batch

# A mask is computed while the forward pass runs. If it is late, its row is computed again in a later step.
_MASK_WAIT_S = 0.001
_ADVANCE_WAIT_S = 0.003  # for whether an answer is complete, which takes a tenth of a millisecond


@dataclass(frozen=True, slots=True)
class StepResult:
    """Tokens that a step chose, and its time."""

    choices: list[list[Choice | None]]  # one list per chunk, empty if it does not sample or its mask is late
    started_s: float
    seconds: float

    @property
    def num_accepted(self) -> list[int]:
        """Drafts of each chunk that were accepted."""
        return [max(0, len(choices) - 1) for choices in self.choices]


def compute_step(runner: Runner, batch: Batch, generations: Sequence[PagedGeneration]) -> StepResult:
    """Run the forward pass of a batch and choose tokens.

    Args:
        runner: decoder and cache.
        batch: chunks to compute.
        generations: the request of each chunk.
    """
    started_s = time.perf_counter()
    pairs = zip(batch.chunks, generations, strict=True)
    sampling = [(generation.state, chunk.drafts) for chunk, generation in pairs if chunk.samples]
    states, drafts = [state for state, _ in sampling], [tokens for _, tokens in sampling]
    grammars = {state: state.grammar for state in states if state.grammar is not None}
    with costly_workers.stopped() if runner.device.type == "cpu" else nullcontext():
        logits_BV = runner.forward(batch.chunks, batch.fresh_blocks, [generation.images for generation in generations])
    wait_for_masks(list(grammars.values()), timeout_s=_MASK_WAIT_S)
    chosen = iter(choose_with_drafts(logits_BV, states, drafts))
    advance([one for state, one in grammars.items() if not state.has_ended], timeout_s=_ADVANCE_WAIT_S)
    choices = [next(chosen) if chunk.samples else [] for chunk in batch.chunks]
    return StepResult(choices, started_s, time.perf_counter() - started_s)
