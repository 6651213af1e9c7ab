"""Read multipart forms that are in memory."""

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from chassis.errors import InvalidArgument

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PARTS = 8

# It logs each byte that is wrong, which anyone can send.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


@dataclass(slots=True)
class Part:
    """One field of a form."""

    disposition: bytes = b""
    name: str = ""
    filename: str | None = None  # None for a field that is no file
    data: bytearray = field(default_factory=bytearray)


def read_form(content_type: str, body: bytes) -> dict[str, Part]:
    """Return the parts of a form by name.

    Args:
        content_type: the request's, with its boundary.
        body: of the request.

    Raises:
        InvalidArgument: reason 'NOT_MULTIPART' or 'BAD_FORM'.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        raise InvalidArgument("Send the file as multipart/form-data.", reason="NOT_MULTIPART")
    reader = _Reader()
    try:
        parser = MultipartParser(options.get(b"boundary", b""), reader.callbacks)
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise _bad("The form is malformed.") from None
    if not reader.has_ended:
        raise _bad("The form has no end, or its content type another boundary.")
    return reader.parts


class _Reader:
    """Collects the parts that a parser finds."""

    def __init__(self) -> None:
        self.parts: dict[str, Part] = {}
        self.has_ended = False
        self._part = Part()
        self._header_name = b""
        self._header_value = b""
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_end": self._end,
        }

    def _begin_part(self) -> None:
        self._part = Part()

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._part.disposition = self._header_value
        self._header_name = self._header_value = b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._part.disposition)
        name, filename = options.get(b"name"), options.get(b"filename")
        if name is None:
            raise _bad("A part of the form has no name.")
        self._part.name = name.decode(errors="replace")
        self._part.filename = None if filename is None else filename.decode(errors="replace")
        if self._part.name in self.parts or len(self.parts) == _MAX_PARTS:
            raise _bad(f"A form has at most {_MAX_PARTS} parts with different names.")
        self.parts[self._part.name] = self._part

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        self._part.data += memoryview(data)[start:end]

    def _end(self) -> None:
        self.has_ended = True


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason="BAD_FORM")
