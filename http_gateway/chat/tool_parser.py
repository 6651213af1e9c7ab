r"""Find calls of tools in an answer, while it streams.

Models of the Qwen family write a call in the Hermes form, in the text of their answer:

    <tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>

The text before the first call is the answer's content. Whitespace around calls is dropped.
"""

import json
import re
import secrets
from dataclasses import dataclass

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")
# The usual beginning of a call. Its arguments can then be streamed as they arrive.
_HEAD = re.compile(rf'\s*\{{\s*"name"\s*:\s*"({_NAME.pattern})"\s*,\s*"arguments"\s*:\s*(?=\{{)')


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text of the answer that is no call."""

    text: str


@dataclass(frozen=True, slots=True)
class CallPiece:
    """The beginning or the next part of a call."""

    index: int  # of the call in the answer
    arguments: str  # to append
    id: str | None = None  # in the first piece of a call
    name: str | None = None  # in the first piece of a call


Piece = TextPiece | CallPiece


class ToolCallParser:
    """Splits one answer into text and calls.

    A call that is no JSON of this form stays text. One whose arguments have begun stays a call, even if the answer ends
    in it.

    Attributes:
        num_calls: calls found so far.
    """

    def __init__(self) -> None:
        self.num_calls = 0
        self._pending = ""  # not passed on yet
        self._read = self._read_text
        self._spaces = ""  # between text and the next call, or at the end of the answer
        self._arguments = _ObjectScanner()

    def push(self, text: str) -> list[Piece]:
        """Take the next text and return the known pieces."""
        self._pending += text
        pieces: list[Piece] = []
        read = None
        while read != self._read:  # each step reads until it needs more text, or another step follows
            read = self._read
            read(pieces)
        return _merged(pieces)

    def finish(self) -> list[Piece]:
        """Return the last pieces, at the end of the answer."""
        if self._read == self._read_rest or (self.num_calls and not self._pending.strip()):
            return []
        text = self._spaces + (OPEN if self._read == self._read_head else "") + self._pending
        self._pending = self._spaces = ""
        return [TextPiece(text)] if text else []

    def _read_text(self, pieces: list[Piece]) -> None:
        """Pass on text up to a call."""
        text, found, rest = self._pending.partition(OPEN)
        if not found:
            kept = _overlap(text, OPEN)
            text, rest = text[: len(text) - kept], text[len(text) - kept :]
        self._pending = rest
        visible = text.rstrip()
        if visible:
            pieces.append(TextPiece(self._spaces + visible))
            self._spaces = text[len(visible) :]
        else:
            self._spaces += text
        if found:
            self._read = self._read_head

    def _read_head(self, pieces: list[Piece]) -> None:
        """Read the beginning of a call."""
        if head := _HEAD.match(self._pending):
            self._pending = self._pending[head.end() :]
            self._begin(head[1], "", pieces)
            self._arguments = _ObjectScanner()
            self._read = self._read_arguments
        elif CLOSE in self._pending:
            self._read_whole(pieces)
            self._read = self._read_text

    def _read_whole(self, pieces: list[Piece]) -> None:
        """Read a complete call of another form."""
        whole, _, self._pending = self._pending.partition(CLOSE)
        try:
            call = json.loads(whole)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            name, arguments = None, None
        if isinstance(name, str) and _NAME.fullmatch(name) and isinstance(arguments, dict):
            self._begin(name, json.dumps(arguments, ensure_ascii=False), pieces)
        else:
            pieces.append(TextPiece(self._spaces + OPEN + whole + CLOSE))
            self._spaces = ""

    def _read_arguments(self, pieces: list[Piece]) -> None:
        """Pass on the arguments as they arrive."""
        taken = self._arguments.scan(self._pending)
        if taken:
            pieces.append(CallPiece(self.num_calls - 1, self._pending[:taken]))
        self._pending = self._pending[taken:]
        if self._arguments.is_complete:
            self._read = self._read_rest

    def _read_rest(self, pieces: list[Piece]) -> None:
        """Drop the end of a call."""
        _, found, rest = self._pending.partition(CLOSE)
        self._pending = rest if found else self._pending[-len(CLOSE) :]
        if found:
            self._read = self._read_text

    def _begin(self, name: str, arguments: str, pieces: list[Piece]) -> None:
        pieces.append(CallPiece(self.num_calls, arguments, id=f"call_{secrets.token_hex(12)}", name=name))
        self.num_calls += 1
        self._spaces = ""


class _ObjectScanner:
    """Finds the end of a JSON object in parts."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._is_escaped = False
        self.is_complete = False

    def scan(self, text: str) -> int:
        """Return how many characters belong to the object."""
        for position, character in enumerate(text):
            if self._in_string:
                if self._is_escaped:
                    self._is_escaped = False
                elif character == "\\":
                    self._is_escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_complete = True
                    return position + 1
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """Return how much of `mark` may begin at the end."""
    return next((length for length in range(len(mark) - 1, 0, -1) if text.endswith(mark[:length])), 0)


def _merged(pieces: list[Piece]) -> list[Piece]:
    """Join neighbours that belong together."""
    merged: list[Piece] = []
    for piece in pieces:
        last = merged[-1] if merged else None
        if isinstance(piece, TextPiece) and isinstance(last, TextPiece):
            merged[-1] = TextPiece(last.text + piece.text)
        else:
            merged.append(piece)
    return merged
