"""Remember answers as digests, to find repeated texts."""

from collections import defaultdict, deque

from gateway.answer import Signs
from gateway.rollout.policy import Arm

# Each answer is compared with so many before it, however many there are. So a release with more traffic does not
# repeat itself more often.
_NUM_COMPARED = 64


class RecentAnswers:
    """The last answers of each release, as digests."""

    def __init__(self) -> None:
        self._last: defaultdict[Arm, deque[tuple[bytes, bytes]]] = defaultdict(lambda: deque(maxlen=_NUM_COMPARED))

    def add(self, arm: Arm, signs: Signs) -> bool:
        """Add an answer. Return whether another question just got it.

        A short answer is not compared, because many questions rightly get it.
        """
        if not signs.text:
            return False
        last = self._last[arm]
        is_repeated = any(text == signs.text and question != signs.question for question, text in last)
        last.append((signs.question, signs.text))
        return is_repeated

    def clear(self) -> None:
        """Forget all answers, as another step begins."""
        self._last.clear()
