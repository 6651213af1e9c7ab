"""Elements of a message are counted before it is parsed."""

from contextlib import suppress

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from chassis.elements import MAX_ELEMENTS, MAX_PACKED_BYTES, check_elements
from chassis.errors import InvalidArgument
from tandem.v1 import gateway_pb2, rollout_pb2, sampling_pb2


def conversation(num_messages: int, num_parts: int) -> gateway_pb2.GatewayGenerateRequest:
    message = gateway_pb2.Message(role=gateway_pb2.ROLE_USER, parts=[gateway_pb2.Part(text="a")] * num_parts)
    return gateway_pb2.GatewayGenerateRequest(messages=[message] * num_messages)


def check(message: Message) -> None:
    check_elements(message.SerializeToString(), type(message).DESCRIPTOR)  # type: ignore[arg-type]  # two types of one


def test_the_longest_conversation_of_the_contract_passes() -> None:
    check(conversation(1024, 1))


def test_tiny_parts_are_refused_wherever_they_stand() -> None:
    for message in (conversation(1, 1_000_000), conversation(MAX_ELEMENTS, 1)):
        with pytest.raises(InvalidArgument) as raised:
            check(message)
        assert raised.value.reason == "TOO_MANY_ELEMENTS"


def test_the_bytes_of_an_image_are_no_elements() -> None:
    image = gateway_pb2.Image(data=b"\x0a\x00" * 1_000_000)  # these would be elements of a message
    part = gateway_pb2.Part(image=image)
    check(gateway_pb2.GatewayGenerateRequest(messages=[gateway_pb2.Message(parts=[part])]))


def test_unknown_fields_are_elements_too() -> None:
    with pytest.raises(InvalidArgument):
        check_elements(b"\xf8\x07\x01" * (MAX_ELEMENTS + 1), gateway_pb2.GatewayGenerateRequest.DESCRIPTOR)


def test_packed_numbers_have_a_limit_of_their_own() -> None:
    check(gateway_pb2.DetokenizeRequest(token_ids=[2**17] * 262_144))
    with pytest.raises(InvalidArgument):
        check(gateway_pb2.DetokenizeRequest(token_ids=[1] * (MAX_PACKED_BYTES + 1)))


def num_elements(message: Message) -> int:
    """Count the elements of a parsed message, slowly."""
    number = 0
    for field, value in message.ListFields():
        values = value if field.is_repeated else [value]
        is_packed = field.is_repeated and field.message_type is None and not isinstance(values[0], str | bytes)
        number += 1 if is_packed else len(values)
        if field.message_type is not None:
            number += sum(map(num_elements, values))
    return number


@given(st.integers(0, 3000), st.integers(0, 6), st.integers(0, 4000))
def test_a_message_is_refused_exactly_above_the_limit(num_messages: int, num_parts: int, num_stops: int) -> None:
    message = conversation(num_messages, num_parts)
    message.stop.extend(["word of ten"] * num_stops)  # enough bytes to be counted at all
    message.sampling.CopyFrom(sampling_pb2.SamplingOptions(temperature=1.5, seed=7))
    message.routing_key = "k" * 2 * MAX_ELEMENTS
    try:
        check(message)
        passes = True
    except InvalidArgument:
        passes = False
    assert passes == (num_elements(message) <= MAX_ELEMENTS)


@given(st.binary(max_size=200), st.integers(0, 2 * MAX_ELEMENTS))
def test_any_bytes_are_counted_without_a_crash(tail: bytes, num_bytes: int) -> None:
    """The parser refuses the malformed ones."""
    for kind in (gateway_pb2.GatewayGenerateRequest, rollout_pb2.RolloutsSetRequest):
        with suppress(InvalidArgument):
            check_elements(b"\x0a\x02\x12\x00" * (num_bytes // 4) + tail + bytes(MAX_ELEMENTS), kind.DESCRIPTOR)
