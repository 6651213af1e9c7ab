"""Stop strings: an answer ends before the first of them, however tokens cut it."""

from collections.abc import Sequence


class StopStrings:
    """Watches one answer for stop strings.

    The one whose last character comes first wins, the longer of two that end together: that does not depend on how the
    text is cut into pieces, and needs no look ahead.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Watch for `stops`, each at least 1 character; none of them lets everything pass at once."""
        self._stops = tuple(stops)
        # Every way a stop string can have begun.
        self._beginnings = frozenset(stop[:length] for stop in stops for length in range(1, len(stop)))
        self._longest = max(map(len, self._beginnings), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return what may be shown now, and whether a stop string was hit (then push no more)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        num_held = self._num_held(text)
        shown = len(text) - num_held
        self._held = text[shown:]
        return text[:shown], False

    def finish(self) -> str:
        """Return what was held back; the answer has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Return the length of the longest end of `text` with which a stop string may have begun."""
        for length in range(min(self._longest, len(text)), 0, -1):
            if text[-length:] in self._beginnings:
                return length
        return 0
