"""The text of one answer as it grows: detokenized, cut at stop strings and filtered, with its log-probabilities."""

from collections import deque
from collections.abc import Sequence

from gateway.answer.stops import StopStrings
from gateway.filters import WordFilter
from processing import Detokenizer, Vocabulary
from tandem.v1 import gateway_pb2, sampling_pb2


class AnswerText:
    """Collects the tokens of one answer and gives out the text that may be shown.

    Attributes:
        num_tokens: tokens taken so far; those that were cut off count, since the model made them.
        ended_by: STOP for a stop string, FILTERED for a word that is not let out; the answer takes no more tokens then.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str], words: WordFilter | None = None) -> None:
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStrings(stops)
        self._words = words
        self._num_decoded = 0  # characters out of the detokenizer
        self._num_shown = 0  # characters given out; fewer while a stop string or a word may have begun
        # Log-probabilities not given out yet, each with the places in the text where its token begins and ends.
        self._logprobs: deque[tuple[int, int, sampling_pb2.PositionLogprobs]] = deque()
        self.num_tokens = 0
        self.ended_by: sampling_pb2.FinishReason.ValueType | None = None

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[sampling_pb2.PositionLogprobs] = ()
    ) -> gateway_pb2.TextDelta | None:
        """Take the next tokens, with one entry of `logprobs` for each or none; return what they make visible."""
        shown = ""
        for index, token_id in enumerate(token_ids):
            self.num_tokens += 1
            text = self._detokenizer.push(token_id)
            if logprobs:
                self._logprobs.append((self._num_decoded, self._num_decoded + len(text), logprobs[index]))
            shown += self._show(text)
            if self.ended_by is not None:
                break
        return self._delta(shown)

    def finish(self) -> gateway_pb2.TextDelta | None:
        """Return what was held back; the model has ended the answer."""
        if self.ended_by is not None:
            return None
        shown = self._show(self._detokenizer.finish())
        if self.ended_by is None:
            shown += self._pass(self._stops.finish(), is_end=True)
        return self._delta(shown, last=self.ended_by is None)

    def _show(self, text: str) -> str:
        self._num_decoded += len(text)
        passed, stopped = self._stops.push(text)
        shown = self._pass(passed, is_end=stopped)
        if stopped and self.ended_by is None:
            self.ended_by = sampling_pb2.FINISH_REASON_STOP
        return shown

    def _pass(self, text: str, *, is_end: bool) -> str:
        """Return what the filter lets out; all of it keeps its length, so places in the text stay what they are."""
        if self._words is not None:
            text = self._words.push(text)
            if is_end and not self._words.ended:
                text += self._words.finish()
            if self._words.ended:
                self.ended_by = sampling_pb2.FINISH_REASON_FILTERED
        self._num_shown += len(text)
        return text

    def _delta(self, text: str, *, last: bool = False) -> gateway_pb2.TextDelta | None:
        """Return `text` with the log-probabilities of the tokens that are visible now, or None if both are empty."""
        visible: list[sampling_pb2.PositionLogprobs] = []
        while self._logprobs and (last or self._is_visible(*self._logprobs[0][:2])):
            visible.append(self._logprobs.popleft()[2])
        return gateway_pb2.TextDelta(text=text, logprobs=visible) if text or visible else None

    def _is_visible(self, begin: int, end: int) -> bool:
        """Return whether the first character of a token is out; where words are looked for, whether all of it is.

        Most tokens begin with the space before a word, and the id of one that goes on into a word would name it.
        """
        return begin < self._num_shown and (self._words is None or end <= self._num_shown)
