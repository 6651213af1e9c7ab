"""Bound how often a dead child process is started again."""

MOST = 3
WINDOW_S = 3600.0  # deaths before that are forgotten
_FIRST_PAUSE_S = 1.0  # each further one within the window is twice as long


class Restarts:
    """The recent deaths of one child process."""

    def __init__(self, most: int = MOST) -> None:
        """Allow `most` starts within the window."""
        self._most = most
        self._deaths_s: list[float] = []

    def pause_s(self, now_s: float) -> float | None:
        """Count a death. Return the pause before the next start.

        None if there have been too many.

        Args:
            now_s: of a clock that never goes back.
        """
        self._deaths_s = [death_s for death_s in self._deaths_s if now_s - death_s < WINDOW_S]
        self._deaths_s.append(now_s)
        return _FIRST_PAUSE_S * 2 ** (len(self._deaths_s) - 1) if len(self._deaths_s) <= self._most else None
