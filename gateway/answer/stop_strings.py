"""End an answer at a stop string, even across tokens."""

from collections.abc import Sequence


class StopStringMatcher:
    """Looks for stop strings in one streamed answer.

    The match that ends first wins. Of two that end together, the longer wins. So the result does not depend on how the
    text is cut into pieces, and needs no look-ahead.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Look for `stops`, each of at least 1 character.

        Without any, no text is held back.
        """
        self._stops = tuple(stops)
        self._prefixes = frozenset(stop[:length] for stop in stops for length in range(1, len(stop)))
        self._longest_prefix = max(map(len, self._prefixes), default=0)
        self._pending = ""  # the end of the text, which may begin a stop string

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, bool]:
        """Take the next piece.

        Args:
            text: the piece.
            may_end: whether a stop string that ends in this piece counts.

        Returns:
            The text that may be shown now, and whether a stop string was hit. After a hit, push no more.
        """
        if not self._stops:
            return text, False
        num_old = len(self._pending)
        text = self._pending + text
        if may_end and (matches := self._matches(text, num_old)):
            self._pending = ""
            return text[: min(matches)[1]], True
        shown = len(text) - self._num_pending(text)
        self._pending = text[shown:]
        return text[:shown], False

    def _matches(self, text: str, num_old: int) -> list[tuple[int, int]]:
        """Return (end, start) of stop strings.

        They end after the first `num_old` characters.
        """
        starts = [(stop, text.find(stop, max(0, num_old - len(stop) + 1))) for stop in self._stops]
        return [(start + len(stop), start) for stop, start in starts if start >= 0]

    def finish(self) -> str:
        """Return the pending text, at the end of the answer."""
        pending, self._pending = self._pending, ""
        return pending

    def _num_pending(self, text: str) -> int:
        """Return the length of the suffix to hold back.

        It is the longest suffix that may begin a stop string.
        """
        for length in range(min(self._longest_prefix, len(text)), 0, -1):
            if text[-length:] in self._prefixes:
                return length
        return 0
