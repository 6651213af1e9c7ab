"""The text of one answer as it grows: detokenized, cut before a stop string, with the log-probabilities it shows."""

from collections import deque
from collections.abc import Sequence

from gateway.detokenizer import Detokenizer, Vocabulary
from gateway.stops import StopStrings
from tandem.v1 import gateway_pb2, sampling_pb2


class AnswerText:
    """Collects the tokens of one answer and gives out the text that may be shown.

    Attributes:
        num_tokens: tokens taken so far; those a stop string cut off count, since the model made them.
        stopped: whether a stop string was hit; the answer takes no more tokens then.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStrings(stops)
        self._num_decoded = 0  # characters out of the detokenizer
        self._num_shown = 0  # characters given out; fewer while a stop string may have begun
        # Log-probabilities not given out yet, each with the place in the text where its token begins.
        self._logprobs: deque[tuple[int, sampling_pb2.PositionLogprobs]] = deque()
        self.num_tokens = 0
        self.stopped = False

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[sampling_pb2.PositionLogprobs] = ()
    ) -> gateway_pb2.TextDelta | None:
        """Take the next tokens, with one entry of `logprobs` for each or none; return what they make visible."""
        shown = ""
        for index, token_id in enumerate(token_ids):
            self.num_tokens += 1
            if logprobs:
                self._logprobs.append((self._num_decoded, logprobs[index]))
            shown += self._show(self._detokenizer.push(token_id))
            if self.stopped:
                break
        return self._delta(shown)

    def finish(self) -> gateway_pb2.TextDelta | None:
        """Return what was held back; the model has ended the answer."""
        if self.stopped:
            return None
        shown = self._show(self._detokenizer.finish())
        if not self.stopped:
            held = self._stops.finish()
            self._num_shown += len(held)
            shown += held
        return self._delta(shown, last=not self.stopped)

    def _show(self, text: str) -> str:
        self._num_decoded += len(text)
        shown, self.stopped = self._stops.push(text)
        self._num_shown += len(shown)
        return shown

    def _delta(self, text: str, *, last: bool = False) -> gateway_pb2.TextDelta | None:
        """Return `text` with the log-probabilities of the tokens whose first character is out now, or None if empty."""
        visible: list[sampling_pb2.PositionLogprobs] = []
        while self._logprobs and (last or self._logprobs[0][0] < self._num_shown):
            visible.append(self._logprobs.popleft()[1])
        return gateway_pb2.TextDelta(text=text, logprobs=visible) if text or visible else None
