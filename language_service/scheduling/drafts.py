"""Guesses how an answer goes on, from its own prompt: plain Python, no second model."""

from collections.abc import Sequence

_NGRAM = 3  # tokens that must have come before for what followed them to be a guess


class PromptLookup:
    """Guesses that after the same few tokens the same will follow as the last time.

    Answers repeat their prompt and themselves: names, numbers, a form to fill in. How far ahead it guesses follows from
    how it did before, so an answer that goes its own way costs one guess a step at most.
    """

    def __init__(self, max_length: int) -> None:
        """Guess at most `max_length` tokens at a time."""
        self._max_length = max_length
        self._length = max_length
        self._follows: dict[tuple[int, ...], int] = {}  # by tokens: the position after their last occurrence
        self._num_known = 0  # positions in there

    def draft(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return at most `count` tokens that may come after `token_ids`, which only ever grow from call to call."""
        for end in range(max(self._num_known, _NGRAM), len(token_ids)):
            self._follows[tuple(token_ids[end - _NGRAM : end])] = end
        self._num_known = len(token_ids)
        position = self._follows.get(tuple(token_ids[-_NGRAM:]))
        if position is None:
            return []
        # What follows may reach the end; from there on the guess repeats itself, as the answer seems to do.
        period = len(token_ids) - position
        return [token_ids[position + step % period] for step in range(min(count, self._length))]

    def learn(self, num_drafted: int, num_right: int) -> None:
        """Note how a guess did: double the reach if all of it was right, else go as far as it was."""
        right = num_right == num_drafted
        self._length = min(2 * self._length, self._max_length) if right else max(1, num_right)
