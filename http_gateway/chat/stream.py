"""A streamed answer as server-sent events."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.types import Send

from chassis.errors import TandemError
from http_gateway.chat.logprobs import logprobs
from http_gateway.chat.pieces import delta_of
from http_gateway.chat.report import Finished, finish_reason, report, usage
from http_gateway.chat.tool_parser import Piece, TextPiece
from http_gateway.chat.tools import ToolPlan
from http_gateway.wire.errors import error_body
from http_gateway.wire.json_text import encode
from tandem.v1 import gateway_pb2
from tandem.v1.sampling_pb2 import PositionLogprobs

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect the events
]
_DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """Fields that all chunks of a request share."""

    request_id: str
    created: int  # seconds since 1970
    model: str

    @property
    def id(self) -> str:
        """Id of the answer."""
        return f"chatcmpl-{self.request_id}"


class ChunkEncoder:
    """Turns the gateway's messages into events.

    Most chunks differ only in their text. The rest of them is encoded once.
    """

    def __init__(self, head: Head, num_choices: int, *, include_usage: bool, tools: ToolPlan) -> None:
        self._head = head
        self._parsers = [tools.new_parser() for _ in range(num_choices)]
        self._include_usage = include_usage
        self._finished: dict[int, Finished] = {}
        self._num_choices = num_choices
        self._last = Finished()
        templates = [self.chunk(index, {"content": ""}).rsplit(b'""', 1) for index in range(num_choices)]
        self._around_text = [(before, after) for before, after in templates]
        self._unstarted = set(range(num_choices))

    def push(self, index: int, response: gateway_pb2.GatewayGenerateResponse) -> bytes:
        """Return the events for one message of a choice."""
        start = b""
        if index in self._unstarted:
            self._unstarted.remove(index)
            start = self.chunk(index, {"role": "assistant", "content": ""})
        if response.HasField("finished"):
            return start + self._finish(index, response.finished)
        parser = self._parsers[index]
        if parser is None and not response.delta.logprobs:
            before, after = self._around_text[index]
            return start + before + encode(response.delta.text) + after
        pieces = parser.push(response.delta.text) if parser is not None else [TextPiece(response.delta.text)]
        return start + self._chunks(index, pieces, response.delta.logprobs)

    def end(self) -> bytes:
        """Return the last events, after all choices have ended."""
        if not self._include_usage:
            return _DONE
        content = self._content([])
        content["usage"] = usage([self._finished[index] for index in range(self._num_choices)])
        content["tandem"] = report(self._head.request_id, self._last)
        return event(content) + _DONE

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
        tandem: dict[str, Any] | None = None,
    ) -> bytes:
        """Return the event of any chunk with a choice."""
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        content = self._content([choice])
        if tandem is not None:
            content["tandem"] = tandem
        return event(content)

    def _chunks(self, index: int, pieces: Sequence[Piece], positions: Sequence[PositionLogprobs] = ()) -> bytes:
        """Return events of pieces, the first with the log-probabilities."""
        deltas = [delta_of(piece) for piece in pieces]
        if positions and not deltas:
            deltas = [{}]
        first = logprobs(positions) if positions else None
        return b"".join(
            self.chunk(index, delta, logprobs=None if number else first) for number, delta in enumerate(deltas)
        )

    def _finish(self, index: int, finished: Finished) -> bytes:
        self._finished[index] = self._last = finished
        is_last = len(self._finished) == self._num_choices and not self._include_usage
        parser = self._parsers[index]
        rest = self._chunks(index, parser.finish()) if parser is not None else b""
        return rest + self.chunk(
            index,
            {},
            finish_reason=finish_reason(finished, has_calls=parser is not None and parser.num_calls > 0),
            tandem=report(self._head.request_id, finished) if is_last else None,
        )

    def _content(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        content = {
            "id": self._head.id,
            "object": "chat.completion.chunk",
            "created": self._head.created,
            "model": self._head.model,
            "choices": choices,
        }
        return {**content, "usage": None} if self._include_usage else content


class EventStream:
    """The response that events are written to.

    It starts with the first event. Before, an error still has its own status.
    """

    def __init__(self, send: Send) -> None:
        self.has_started = False
        self._send = send

    async def write(self, events: bytes) -> None:
        """Send events, and wait while the client is slow."""
        if not self.has_started:
            self.has_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await self._send({"type": "http.response.body", "body": events, "more_body": True})

    async def end(self, events: bytes) -> None:
        """Send the last events."""
        await self._send({"type": "http.response.body", "body": events, "more_body": False})


def event(content: dict[str, Any]) -> bytes:
    """Return one event."""
    return b"data: " + encode(content) + b"\n\n"


def error_event(error: TandemError) -> bytes:
    """Return the event of an error within a stream."""
    return event(error_body(error))
