"""Turn an answer's tokens into text: detokenize, stop, filter."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.answer.stop_strings import StopStringMatcher
from gateway.filters import WordFilter
from processing import Detokenizer, Vocabulary
from tandem.v1 import gateway_pb2, sampling_pb2


@dataclass(frozen=True, slots=True)
class _TokenLogprobs:
    """Log-probabilities of one token, and its place in the text."""

    begin: int  # characters before the token
    end: int
    logprobs: sampling_pb2.PositionLogprobs


class AnswerText:
    """Collects an answer's tokens and returns the visible text.

    Attributes:
        num_tokens: tokens taken so far, hidden ones included, because the model generated them too.
        ended_by: STOP after a stop string, FILTERED after a forbidden word. The answer takes no more tokens then.
    """

    def __init__(
        self, vocabulary: Vocabulary, stops: Sequence[str], words: WordFilter | None = None, *, min_tokens: int = 0
    ) -> None:
        """Begin an answer.

        Args:
            vocabulary: bytes of the tokens.
            stops: stop strings. One counts if it ends after the first `min_tokens` tokens.
            words: forbidden words.
            min_tokens: tokens of the answer that no stop string ends.
        """
        self._vocabulary = vocabulary
        self._detokenizer = Detokenizer(vocabulary)
        self._stops = StopStringMatcher(stops)
        self._words = words
        self._min_tokens = min_tokens
        self._num_decoded = 0  # characters from the detokenizer
        self._num_shown = 0  # characters returned. Fewer while a stop string or a word may have begun
        self._pending_logprobs: deque[_TokenLogprobs] = deque()
        self.num_tokens = 0
        self.ended_by: sampling_pb2.FinishReason.ValueType | None = None

    def push(
        self, token_ids: Sequence[int], logprobs: Sequence[sampling_pb2.PositionLogprobs] = ()
    ) -> gateway_pb2.TextDelta | None:
        """Take the next tokens and return the newly visible text.

        Args:
            token_ids: the tokens.
            logprobs: one entry per token, or none at all.
        """
        shown = ""
        for index, token_id in enumerate(token_ids):
            self.num_tokens += 1
            text = self._detokenizer.push(token_id)
            if logprobs:
                end = self._num_decoded + len(text)
                self._set_bytes(logprobs[index])
                self._pending_logprobs.append(_TokenLogprobs(self._num_decoded, end, logprobs[index]))
            shown += self._show(text)
            if self.ended_by is not None:
                break
        return self._delta(shown)

    def finish(self) -> gateway_pb2.TextDelta | None:
        """Return the pending text, after the model's last token."""
        if self.ended_by is not None:
            return None
        shown = self._show(self._detokenizer.finish())
        if self.ended_by is None:
            shown += self._filter(self._stops.finish(), is_end=True)
        return self._delta(shown, is_last=self.ended_by is None)

    def _set_bytes(self, position: sampling_pb2.PositionLogprobs) -> None:
        """Add the bytes of the tokens, which clients cannot know."""
        for entry in (position.chosen, *position.top):
            entry.token = self._vocabulary.bytes_of(entry.token_id)

    def _show(self, text: str) -> str:
        """Return the visible part of the pending text and `text`."""
        self._num_decoded += len(text)
        text, is_stopped = self._stops.push(text, may_end=self.num_tokens > self._min_tokens)
        shown = self._filter(text, is_end=is_stopped)
        if is_stopped and self.ended_by is None:
            self.ended_by = sampling_pb2.FINISH_REASON_STOP
        return shown

    def _filter(self, text: str, *, is_end: bool) -> str:
        """Apply the word filter.

        Masking keeps lengths, so the tokens' places stay valid.
        """
        if self._words is not None:
            text = self._words.push(text)
            if is_end and not self._words.ended:
                text += self._words.finish()
            if self._words.ended:
                self.ended_by = sampling_pb2.FINISH_REASON_FILTERED
        self._num_shown += len(text)
        return text

    def _delta(self, text: str, *, is_last: bool = False) -> gateway_pb2.TextDelta | None:
        """Return `text` with the log-probabilities of visible tokens, or None."""
        visible: list[sampling_pb2.PositionLogprobs] = []
        while self._pending_logprobs and (is_last or self._is_visible(self._pending_logprobs[0])):
            visible.append(self._pending_logprobs.popleft().logprobs)
        return gateway_pb2.TextDelta(text=text, logprobs=visible) if text or visible else None

    def _is_visible(self, token: _TokenLogprobs) -> bool:
        """Return whether a token may be revealed.

        Its first character must be visible. With a word filter, all of it must be: most tokens begin with the space
        before a word, so the id of a partly visible token would reveal a forbidden word.
        """
        return token.begin < self._num_shown and (self._words is None or token.end <= self._num_shown)
