"""Keep requests out of the steps until their constraint is ready."""

import threading

from language_service.engine.generation import PagedGeneration
from language_service.sampling import Grammar


class Pauses:
    """The paused requests of one engine. Used under its lock."""

    def __init__(self, condition: threading.Condition) -> None:
        """Notify `condition` when a request may go on."""
        self._condition = condition
        self._ready: list[PagedGeneration] = []

    def add(self, generation: PagedGeneration, grammar: Grammar) -> None:
        """Pause a request until its constraint is ready."""
        generation.sequence.is_paused = True
        grammar.when_ready(lambda: self._note_ready(generation))

    def take_ready(self) -> list[PagedGeneration]:
        """Return the requests whose constraint has become ready.

        Some may have ended meanwhile.
        """
        ready, self._ready = self._ready, []
        for generation in ready:
            generation.sequence.is_paused = False
        return ready

    def _note_ready(self, generation: PagedGeneration) -> None:
        with self._condition:  # on any thread
            self._ready.append(generation)
            self._condition.notify()
