"""A whole answer as one JSON object."""

from dataclasses import dataclass, field
from typing import Any

from http_gateway.chat.choices import Choices
from http_gateway.chat.logprobs import logprobs
from http_gateway.chat.pieces import message_of
from http_gateway.chat.report import Finished, finish_reason, report, usage
from http_gateway.chat.request import ChatCall
from http_gateway.chat.stream import Head
from http_gateway.chat.tool_parser import Piece, TextPiece
from tandem.v1 import sampling_pb2


@dataclass(slots=True)
class _Choice:
    """One answer, as far as it came."""

    texts: list[str] = field(default_factory=list)
    positions: list[sampling_pb2.PositionLogprobs] = field(default_factory=list)
    finished: Finished = field(default_factory=Finished)


async def read_answer(choices: Choices, head: Head, call: ChatCall) -> dict[str, Any]:
    """Read all choices to their ends, and return the answer.

    Args:
        choices: the calls.
        head: fields that all chunks and answers of the request share.
        call: the request.

    Raises:
        TandemError: a choice failed.
    """
    read = [_Choice() for _ in range(call.num_choices)]
    last = read[0]
    while (item := await choices.read()) is not None:
        index, response = item
        choice = read[index]
        if response.HasField("finished"):
            choice.finished = response.finished
            last = choice
        else:
            choice.texts.append(response.delta.text)
            choice.positions.extend(response.delta.logprobs)
    return {
        "id": head.id,
        "object": "chat.completion",
        "created": head.created,
        "model": head.model,
        "choices": [_choice(index, choice, call) for index, choice in enumerate(read)],
        "usage": usage([choice.finished for choice in read]),
        "tandem": report(head.request_id, last.finished),
    }


def _choice(index: int, choice: _Choice, call: ChatCall) -> dict[str, Any]:
    text, parser = "".join(choice.texts), call.tools.new_parser()
    pieces: list[Piece] = [TextPiece(text)] if parser is None else [*parser.push(text), *parser.finish()]
    message = message_of(pieces)
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs(choice.positions) if call.request.sampling.HasField("num_logprobs") else None,
        "finish_reason": finish_reason(choice.finished, has_calls="tool_calls" in message),
    }
