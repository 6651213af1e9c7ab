"""Draft tokens from n-grams of the text, without a model."""

from collections.abc import Sequence

_NGRAM = 3  # tokens that must match
_MAX_PAUSE = 64  # steps without drafts after rejected ones


class PromptLookup:
    """Drafts the tokens after the last occurrence of an n-gram.

    Answers repeat their prompt and themselves: names, numbers, a form to fill in. The draft length adapts to earlier
    drafts. After a rejected draft it pauses, twice as long each time, so an answer that does not repeat costs little.

    Source: prompt lookup decoding (Saxena, 2023).
    """

    def __init__(self, max_length: int) -> None:
        """Draft at most `max_length` tokens at a time."""
        self._max_length = max_length
        self._length = 1
        self._pause = self._num_paused = 0  # steps without a draft: in this pause, and so far
        self._next_position: dict[tuple[int, ...], int] = {}  # n-gram -> position after its last occurrence
        self._num_indexed = 0  # positions in there

    def draft(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Return at most `count` tokens that may follow `token_ids`.

        Between calls, `token_ids` may only grow.
        """
        for end in range(max(self._num_indexed, _NGRAM), len(token_ids)):
            self._next_position[tuple(token_ids[end - _NGRAM : end])] = end
        self._num_indexed = len(token_ids)
        position = self._next_position.get(tuple(token_ids[-_NGRAM:]))
        if position is None or count == 0:
            return []
        if self._num_paused < self._pause:
            self._num_paused += 1
            return []
        # A draft that reaches the end of the text starts over at `position`: the answer seems to repeat itself.
        period = len(token_ids) - position
        return [token_ids[position + step % period] for step in range(min(count, self._length))]

    def learn(self, num_drafted: int, num_accepted: int) -> None:
        """Adapt length and pauses to the accepted tokens.

        The length doubles if all were accepted. Otherwise it shrinks to the accepted number. The pause doubles if none
        was accepted. Otherwise it ends.
        """
        all_accepted = num_accepted == num_drafted
        self._length = min(2 * self._length, self._max_length) if all_accepted else max(1, num_accepted)
        self._pause = 0 if num_accepted else min(max(1, 2 * self._pause), _MAX_PAUSE)
        self._num_paused = 0
