"""The state of one answer between its tokens."""

import random
from array import array
from collections.abc import Sequence

from language_service.sampling.grammar import Grammar
from language_service.sampling.options import SamplingOptions


class SeenTokens:
    """The distinct tokens of a prompt and its answer.

    Counts are those in the answer.
    """

    def __init__(self) -> None:
        self.token_ids = array("q")
        self.counts = array("f")
        self._indices: dict[int, int] = {}  # token -> index in both arrays

    def add_prompt(self, token_ids: Sequence[int]) -> None:
        """Add text of the prompt."""
        for token_id in token_ids:
            self._index(token_id)

    def add_answer(self, token_id: int) -> None:
        """Count a token of the answer."""
        self.counts[self._index(token_id)] += 1

    def _index(self, token_id: int) -> int:
        index = self._indices.setdefault(token_id, len(self.token_ids))
        if index == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0)
        return index


class SamplingState:
    """The sampling state of one answer.

    Plain data, from which each step makes its tensors.
    """

    def __init__(self, options: SamplingOptions, *, eos_token_ids: Sequence[int], grammar: Grammar | None = None):
        self.options = options
        self.grammar = grammar
        self.num_chosen = 0
        self._last_is_end = False  # whether the token chosen last is an end
        self.ends = array("q", sorted({*eos_token_ids, *options.stop_token_ids}))
        # Each answer takes one number per token from its own stream. So its text does not depend on the batch. For a
        # single number, Python's generator is cheaper than torch's.
        self.random = random.Random(options.seed)
        self.biased = array("q", options.logit_bias.keys())
        self.biases = array("f", options.logit_bias.values())
        self.seen = SeenTokens()  # empty without penalties

    def is_end(self, token_id: int) -> bool:
        """Whether this token ends the answer and is not sent."""
        return token_id in self.options.stop_token_ids or (token_id in self.ends and not self.options.ignore_eos)

    @property
    def has_ended(self) -> bool:
        """Whether the answer has ended, as far as is known.

        Its grammar tells only once it `is_settled`.
        """
        return self._last_is_end or (self.grammar is not None and self.grammar.is_complete)

    @property
    def is_ready(self) -> bool:
        """Whether the next token can be chosen now."""
        return self.grammar is None or self.grammar.is_ready

    def take_forced(self) -> int | None:
        """Choose the next token without logits, if it is forced.

        Returns None if another one could be chosen, or if logits are needed anyway.
        """
        token_id = None if self.grammar is None else self.grammar.forced_token
        options = self.options
        if token_id is None or options.num_logprobs is not None or options.penalises or self._is_barred(token_id):
            return None
        if options.temperature > 0:
            self.random.random()  # as a draw does, so that later tokens do not change
        self.note_choice(token_id)
        return token_id

    def _is_barred(self, token_id: int) -> bool:
        return self.num_chosen < self.options.min_tokens and token_id in self.ends

    def note_prompt(self, token_ids: Sequence[int]) -> None:
        """Add text of the prompt, for the repetition penalty."""
        if self.options.penalises:
            self.seen.add_prompt(token_ids)

    def note_choice(self, token_id: int) -> None:
        """Record a chosen token of the answer."""
        self.num_chosen += 1
        self._last_is_end = self.is_end(token_id)
        if self.grammar is not None:
            self.grammar.accept(token_id)
        if self.options.penalises:
            self.seen.add_answer(token_id)
