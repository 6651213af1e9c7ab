"""A slow and simple sampler, as the reference.

One answer, one option at a time, each by its definition.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from language_service.sampling.grammar import Grammar, allowed_tokens
from language_service.sampling.options import SamplingOptions
from tests.language_service.following import settle


class SlowAnswer:
    """The state of one answer."""

    def __init__(
        self, options: SamplingOptions, prompt_ids: Sequence[int], *, eos_token_id: int, grammar: Grammar | None
    ) -> None:
        self._options, self._prompt_ids, self._grammar = options, set(prompt_ids), grammar
        self._ends = {eos_token_id, *options.stop_token_ids}
        self._unsent = self._ends if not options.ignore_eos else options.stop_token_ids
        self._counts: Counter[int] = Counter()

    def is_end(self, token: int) -> bool:
        return token in self._unsent

    @property
    def is_complete(self) -> bool:
        return self._grammar is not None and self._grammar.is_complete

    def note(self, token: int) -> None:
        self._counts[token] += 1
        if self._grammar is not None:
            self._grammar.accept(token)
            settle([self._grammar])

    def choose(self, logits_V: Tensor, mark: float) -> int:
        """Choose the next token.

        With a temperature, it is the one at `mark`, 0 to 1, of the distribution after all cut-offs.
        """
        logits = self._adjusted(logits_V.tolist())
        ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
        if self._options.temperature == 0:
            return ranked[0]
        ranked = ranked[: self._options.top_k or len(ranked)]
        weights = [math.exp((logits[token] - logits[ranked[0]]) / self._options.temperature) for token in ranked]
        before = np.cumsum([0, *weights]) / sum(weights)
        kept = [
            weight if sum_before < self._options.top_p and weight >= self._options.min_p else 0.0
            for weight, sum_before in zip(weights, before, strict=False)
        ]
        return ranked[int(np.searchsorted(np.cumsum(kept), mark * sum(kept), side="right"))]

    def _adjusted(self, logits: list[float]) -> list[float]:
        options = self._options
        for token, bias in options.logit_bias.items():
            logits[token] += bias
        for token in self._prompt_ids | self._counts.keys():
            factor = 1 / options.repetition_penalty if logits[token] > 0 else options.repetition_penalty
            logits[token] *= factor
        for token, count in self._counts.items():
            logits[token] -= options.frequency_penalty * count + options.presence_penalty
        if self._counts.total() < options.min_tokens:
            for token in self._ends:
                logits[token] = -math.inf
        if self._grammar is not None:
            (allowed_V,) = allowed_tokens([self._grammar], len(logits))
            logits = torch.tensor(logits).masked_fill(~torch.from_numpy(allowed_V), -math.inf).tolist()
        return logits
