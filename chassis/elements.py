"""Count the elements of a message before it is parsed.

A parsed element takes a hundred times the two bytes that it can have on the wire. So a message of 30 MiB could take
gigabytes, and the checks of its elements seconds.
"""

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from chassis.errors import InvalidArgument

MAX_ELEMENTS = 8192
MAX_PACKED_BYTES = 4 * 2**20  # of all packed numbers of a message, which take up to eight times as much when parsed

_MIN_ELEMENT_BYTES = 2
_VARINT, _LENGTH = 0, 2
_FIXED_BYTES = {1: 8, 3: 0, 4: 0, 5: 4}  # by wire type. 3 and 4 are the ends of a group, which no message here has
_STRINGS = (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


class _Shape:
    """The fields of a message with elements, by tag.

    Shapes refer to each other, because message types can be recursive.
    """

    def __init__(self) -> None:
        self.messages: dict[int, _Shape] = {}
        self.packed: set[int] = set()


def check_elements(data: bytes, kind: Descriptor) -> None:
    """Check the number of elements in a serialized message.

    Elements are fields at any depth, one for each entry of a repeated field. A malformed message passes, because the
    parser refuses it.

    Args:
        data: the message on the wire.
        kind: its type.

    Raises:
        InvalidArgument: reason 'TOO_MANY_ELEMENTS'.
    """
    if len(data) <= MAX_ELEMENTS * _MIN_ELEMENT_BYTES:
        return
    try:
        too_many = _has_too_many(data, _shape_of(kind))
    except IndexError:  # malformed
        return
    if too_many:
        raise InvalidArgument(
            f"The request has more than {MAX_ELEMENTS} elements, such as messages and parts, or more than "
            f"{MAX_PACKED_BYTES} bytes of numbers: send fewer.",
            reason="TOO_MANY_ELEMENTS",
        )


def _has_too_many(data: bytes, shape: _Shape) -> bool:
    num_elements = num_packed_bytes = 0
    rest = [(0, len(data), shape)]  # start and end of messages, and their shape
    while rest:
        at, end, shape = rest.pop()
        messages, packed = shape.messages, shape.packed
        while at < end:
            num_elements += 1
            # Most numbers have one byte. A call for each of them would take half of the time.
            tag, at = data[at], at + 1
            if tag >= 0x80:
                tag, at = _read_varint(data, at - 1)
            if tag & 7 != _LENGTH:
                at = _after(data, at, tag & 7)
            else:
                size, at = data[at], at + 1
                if size >= 0x80:
                    size, at = _read_varint(data, at - 1)
                start, at = at, at + size
                if tag in messages:
                    rest.append((start, at if at < end else end, messages[tag]))
                elif tag in packed:
                    num_packed_bytes += size
            if num_elements > MAX_ELEMENTS or num_packed_bytes > MAX_PACKED_BYTES:
                return True
    return False


def _after(data: bytes, at: int, wire_type: int) -> int:
    """Return the position after a value without a length."""
    if wire_type == _VARINT:
        return _read_varint(data, at)[1]
    if wire_type in _FIXED_BYTES:
        return at + _FIXED_BYTES[wire_type]
    raise IndexError  # malformed


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number and the position after it."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while byte >= 0x80:
        at += 1
        byte = data[at]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise IndexError  # malformed
    return value, at + 1


@cache
def _shape_of(kind: Descriptor) -> _Shape:
    return _build(kind, {})


def _build(kind: Descriptor, known: dict[str, _Shape]) -> _Shape:
    if kind.full_name in known:
        return known[kind.full_name]
    shape = known[kind.full_name] = _Shape()
    for field in kind.fields:
        if field.message_type is not None:
            shape.messages[_tag_of(field)] = _build(field.message_type, known)
        elif field.is_repeated and field.type not in _STRINGS:
            shape.packed.add(_tag_of(field))
    return shape


def _tag_of(field: FieldDescriptor) -> int:
    """Return the number before a value with a length."""
    return field.number << 3 | _LENGTH
