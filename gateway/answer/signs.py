"""Notice signs of a sick model, without keeping its text.

Only yes or no, two numbers and two digests leave this module. The digests are under a key that this process forgets.
So no counter, log or store can show a user's words.
"""

import hashlib
import secrets
import unicodedata
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from processing import ChatMessage
from tandem.v1 import sampling_pb2

# An answer loops if its end repeats up to 32 tokens at least four times, over at least 24 tokens.
_MAX_PERIOD, _MIN_REPEATS, _MIN_LOOP_TOKENS = 32, 4, 24
# A script counts if it has nearly all letters of the question, and the answer has enough letters to tell.
_MIN_SHARE, _MAX_SHARE, _MIN_LETTERS = 0.8, 0.2, 8
_MAX_QUESTION_CHARACTERS = 2000
_MIN_SAME_TOKENS = 5  # shorter answers are often rightly the same

_KEY = secrets.token_bytes(16)
_HAN = "CJK"
# First words of Unicode names. Japanese mixes three scripts, so they count as one with Chinese characters.
_SCRIPTS = {"HIRAGANA": _HAN, "KATAKANA": _HAN, "IDEOGRAPHIC": _HAN, "FULLWIDTH": "LATIN"}


@dataclass(frozen=True, slots=True)
class Signs:
    """Signs in one answer."""

    looped: bool = False  # it ends in endless repetition
    cut_off: bool = False  # it ended at the limit of its tokens
    filtered: bool = False  # it ended at a filtered word
    wrong_script: bool = False  # it is written in another script than its question
    num_tokens: int | None = None  # of a complete answer
    mean_logprob: float | None = None  # of its tokens, where it was asked for
    question: bytes = b""  # keyed digest
    text: bytes = b""  # keyed digest, empty for a short answer


class SignReader:
    """Reads the signs of one answer while it streams."""

    def __init__(self, script: str | None, question: bytes) -> None:
        """Begin an answer.

        Args:
            script: of the question, see `script_of`.
            question: digest of the question, see `digest_of`.
        """
        self._script = script
        self._question = question
        self._last: deque[int] = deque(maxlen=_MAX_PERIOD * _MIN_REPEATS)
        self._num_tokens = 0
        self._logprobs = (0, 0.0)  # number and sum
        self._letters: Counter[str] = Counter()
        self._digest = hashlib.blake2b(key=_KEY, digest_size=16)

    def add(self, token_ids: Sequence[int], text: str, logprobs: Iterable[sampling_pb2.PositionLogprobs] = ()) -> None:
        """Add the next tokens, and the text that became visible.

        Args:
            token_ids: the tokens.
            text: visible now.
            logprobs: of the tokens, where they were asked for.
        """
        for one in logprobs:
            self._logprobs = (self._logprobs[0] + 1, self._logprobs[1] + one.chosen.logprob)
        self._last.extend(token_ids)
        self._num_tokens += len(token_ids)
        if text:
            self._letters.update(_scripts(text))
            self._digest.update(text.encode())

    def finish(self, reason: "sampling_pb2.FinishReason.ValueType") -> Signs:
        """Return the signs of the complete answer."""
        return Signs(
            looped=is_looping(self._last),
            cut_off=reason == sampling_pb2.FINISH_REASON_LENGTH,
            filtered=reason == sampling_pb2.FINISH_REASON_FILTERED,
            wrong_script=self._is_wrong_script(),
            num_tokens=self._num_tokens,
            mean_logprob=self._logprobs[1] / self._logprobs[0] if self._logprobs[0] else None,
            question=self._question,
            text=self._digest.digest() if self._num_tokens >= _MIN_SAME_TOKENS else b"",
        )

    def _is_wrong_script(self) -> bool:
        total = self._letters.total()
        if self._script is None or total < _MIN_LETTERS:
            return False
        return self._letters[self._script] / total < _MAX_SHARE


def is_looping(token_ids: Iterable[int]) -> bool:
    """Return whether the last tokens repeat themselves."""
    backwards = list(token_ids)[::-1]
    for period in range(1, _MAX_PERIOD + 1):
        needed = max(period * _MIN_REPEATS, _MIN_LOOP_TOKENS)
        if len(backwards) < needed:
            return False
        if backwards[: needed - period] == backwards[period:needed]:
            return True
    return False


def script_of(messages: Sequence[ChatMessage]) -> str | None:
    """Return the last question's script, if it has one."""
    texts: list[Any] = [part["text"] for part in messages[-1]["content"] if part["type"] == "text"]
    letters = Counter(_scripts("".join(texts)[:_MAX_QUESTION_CHARACTERS]))
    if not letters:
        return None
    script, number = letters.most_common(1)[0]
    return script if number / letters.total() >= _MIN_SHARE else None


def digest_of(messages: Sequence[ChatMessage], images: Iterable[bytes]) -> bytes:
    """Return a keyed digest of a conversation.

    Args:
        messages: with their texts.
        images: SHA-256 digests of the images, in order.
    """
    digest = hashlib.blake2b(key=_KEY, digest_size=16)
    for message in messages:
        for part in message["content"]:
            text = part["text"] if part["type"] == "text" else ""
            digest.update(f"{message['role']} {len(text)} {text}".encode(errors="surrogatepass"))
    for image in images:
        digest.update(image)
    return digest.digest()


def _scripts(text: str) -> list[str]:
    """Return the script of each letter."""
    return [script for character in text if (script := _script(character))]


@lru_cache(maxsize=4096)
def _script(character: str) -> str:
    """Return a letter's script, such as 'LATIN', or ''."""
    if not character.isalpha():
        return ""
    word = unicodedata.name(character, "").partition(" ")[0]
    return _SCRIPTS.get(word, word)
