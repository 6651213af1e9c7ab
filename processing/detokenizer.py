"""Token ids to text, piece by piece.

The text of byte-level BPE is a string of bytes that tokens cut anywhere, in the middle of a Chinese character too. So
tokens become bytes by a table, and bytes become text by Python's incremental UTF-8 decoder, which holds back an
unfinished character and nothing else. The tokenizers library's `DecodeStream` would hold back all text from the first
invalid byte to the next valid character, and drops what is held when the answer ends.
"""

import codecs
import json
from functools import cache

from tokenizers import Tokenizer

from chassis.errors import FailedPrecondition


class Vocabulary:
    """The bytes of every token of one tokenizer; special tokens have none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Read the table out of `tokenizer`.

        Raises:
            FailedPrecondition: it is not byte-level.
        """
        decoder = json.loads(tokenizer.to_str())["decoder"] or {}
        if decoder.get("type") != "ByteLevel":
            raise FailedPrecondition("The tokenizer is not byte-level BPE.", reason="BAD_CHECKPOINT")
        specials = {token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        vocabulary = tokenizer.get_vocab(with_added_tokens=True)
        self._bytes = {token_id: _to_bytes(token) for token, token_id in vocabulary.items() if token_id not in specials}

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes of a token; none for a special token and for an id the tokenizer does not know."""
        return self._bytes.get(token_id, b"")


class Detokenizer:
    """Turns the tokens of one answer into text; all pieces together are what decoding all tokens at once gives."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the characters that are complete with this token."""
        return self._utf8.decode(self._vocabulary.bytes_of(token_id))

    def finish(self) -> str:
        """Return U+FFFD where the answer ended inside a character, else nothing."""
        return self._utf8.decode(b"", final=True)


def _to_bytes(token: str) -> bytes:
    """Return the bytes a token's spelling stands for; an added token may be spelled in plain text."""
    spelling = _byte_of_character()
    try:
        return bytes(spelling[character] for character in token)
    except KeyError:
        return token.encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """Return the byte behind each character of a byte-level spelling.

    GPT-2's table: printable Latin-1 stands for itself, the other bytes for U+0100 and up, in order
    (github.com/openai/gpt-2, src/encoder.py, bytes_to_unicode).
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}
