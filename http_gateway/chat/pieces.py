"""Text and calls of tools as JSON, in parts and whole."""

from collections.abc import Iterable
from typing import Any

from http_gateway.chat.tool_parser import CallPiece, TextPiece


def delta_of(piece: TextPiece | CallPiece) -> dict[str, Any]:
    """Return the delta of a chunk."""
    if isinstance(piece, TextPiece):
        return {"content": piece.text}
    function: dict[str, Any] = {"arguments": piece.arguments}
    call: dict[str, Any] = {"index": piece.index, "function": function}
    if piece.id is not None:
        call |= {"id": piece.id, "type": "function"}
        function["name"] = piece.name
    return {"tool_calls": [call]}


def message_of(pieces: Iterable[TextPiece | CallPiece]) -> dict[str, Any]:
    """Return the message of a whole answer."""
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for piece in pieces:
        if isinstance(piece, TextPiece):
            texts.append(piece.text)
            continue
        if piece.id is not None:
            calls.append({"id": piece.id, "type": "function", "function": {"name": piece.name, "arguments": ""}})
        calls[-1]["function"]["arguments"] += piece.arguments
    message: dict[str, Any] = {"role": "assistant", "content": "".join(texts), "refusal": None}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    return message
