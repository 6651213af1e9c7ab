"""Each error of a request has its reason and field."""

import pytest

from chassis.errors import InvalidArgument
from gateway.answer.checks import Limits, check_conversation, check_options
from tandem.v1 import gateway_pb2
from tandem.v1.gateway_pb2 import ROLE_ASSISTANT, ROLE_SYSTEM, ROLE_USER, Image, Message, Part

LIMITS = Limits(max_images=2, max_text_characters=20, max_stop_strings=16)
TEXT, IMAGE = Part(text="What?"), Part(image=Image(data=b"x"))

BAD_CONVERSATIONS = {
    "no messages": ([], "NO_MESSAGES", "messages"),
    "no role": ([Message(parts=[TEXT])], "BAD_ROLE", "messages[0].role"),
    "unknown role": ([Message(role=9, parts=[TEXT])], "BAD_ROLE", "messages[0].role"),  # type: ignore[arg-type]
    "no parts": ([Message(role=ROLE_USER)], "EMPTY_MESSAGE", "messages[0].parts"),
    "empty part": ([Message(role=ROLE_USER, parts=[TEXT, Part()])], "EMPTY_PART", "messages[0].parts[1]"),
    "empty text": ([Message(role=ROLE_USER, parts=[Part(text="")])], "EMPTY_PART", "messages[0].parts[0]"),
    "the last message is the model's": (
        [Message(role=ROLE_USER, parts=[TEXT]), Message(role=ROLE_ASSISTANT, parts=[TEXT])],
        "LAST_NOT_USER",
        "messages[1].role",
    ),
    "an image without text": ([Message(role=ROLE_USER, parts=[IMAGE])], "EMPTY_QUESTION", "messages[0].parts"),
    "a blank question": (
        [Message(role=ROLE_USER, parts=[IMAGE, Part(text=" \n\u3000")])],
        "EMPTY_QUESTION",
        "messages[0].parts",
    ),
    "too many images in one message": (
        [Message(role=ROLE_USER, parts=[IMAGE, IMAGE, TEXT, IMAGE])],
        "TOO_MANY_IMAGES",
        "messages[0].parts[3].image",
    ),
    "too many images over all messages": (
        [
            Message(role=ROLE_USER, parts=[IMAGE, TEXT, IMAGE]),
            Message(role=ROLE_ASSISTANT, parts=[TEXT]),
            Message(role=ROLE_USER, parts=[IMAGE, TEXT]),
        ],
        "TOO_MANY_IMAGES",
        "messages[2].parts[0].image",
    ),
    "too much text over all messages": (
        [Message(role=ROLE_SYSTEM, parts=[Part(text="a" * 18)]), Message(role=ROLE_USER, parts=[TEXT])],
        "TEXT_TOO_LONG",
        "messages[1].parts[0].text",
    ),
}


@pytest.mark.parametrize(("messages", "reason", "field"), list(BAD_CONVERSATIONS.values()), ids=list(BAD_CONVERSATIONS))
def test_a_bad_conversation_is_refused_at_its_field(messages: list[Message], reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_conversation(messages, LIMITS)
    assert (raised.value.reason, raised.value.field) == (reason, field)


@pytest.mark.parametrize(
    ("options", "reason", "field"),
    [
        ({"stop": ["a"] * 17}, "TOO_MANY_STOP_STRINGS", "stop"),
        ({"stop": ["a", ""]}, "BAD_STOP_STRING", "stop[1]"),
        ({"stop": ["a" * 129]}, "BAD_STOP_STRING", "stop[0]"),
        ({"routing_key": "k" * 257}, "BAD_ROUTING_KEY", "routing_key"),
    ],
)
def test_bad_options_are_refused_at_their_field(options: dict[str, str | list[str]], reason: str, field: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_options(gateway_pb2.GatewayGenerateRequest(**options), LIMITS)  # type: ignore[arg-type]
    assert (raised.value.reason, raised.value.field) == (reason, field)


def test_everything_at_its_limit_is_accepted() -> None:
    check_options(gateway_pb2.GatewayGenerateRequest(stop=["字" * 128] * 16, routing_key="k" * 256), LIMITS)
    message = Message(role=ROLE_USER, parts=[IMAGE, Part(text="问" * 20), IMAGE])
    conversation = check_conversation([message], LIMITS)
    assert conversation.num_characters == 20
    assert [image.field for image in conversation.images] == [
        "messages[0].parts[0].image",
        "messages[0].parts[2].image",
    ]


@pytest.mark.parametrize(
    "parts", [[], [Part()], [Part(text="")], [Part(text="a\x00b\x85")]], ids=["no part", "unset", "empty", "control"]
)
def test_a_message_of_the_model_is_taken_as_it_was_produced(parts: list[Part]) -> None:
    turns = [Message(role=ROLE_USER, parts=[TEXT]), Message(role=ROLE_ASSISTANT, parts=parts)]
    conversation = check_conversation([*turns, Message(role=ROLE_USER, parts=[TEXT])], LIMITS)
    assert conversation.messages[1]["content"] == [{"type": "text", "text": part.text} for part in parts]


def test_pasted_text_is_cleaned() -> None:
    """Documents end pages with form feeds.

    C1 characters come from text that was read in another encoding.
    """
    text = Part(text="1\x0c2\x0b3\x854\x92s\t5\r\n")
    conversation = check_conversation([Message(role=ROLE_USER, parts=[text])], LIMITS)
    assert conversation.messages[0]["content"] == [{"type": "text", "text": "1\n2\n3\n4s\t5\r\n"}]


def test_an_answer_that_has_begun_can_be_continued() -> None:
    turns = [Message(role=ROLE_USER, parts=[TEXT]), Message(role=ROLE_ASSISTANT, parts=[Part(text="A red")])]
    conversation = check_conversation(turns, LIMITS, continues_last=True)
    assert conversation.continues_last
    assert conversation.messages[-1]["role"] == "assistant"


@pytest.mark.parametrize(
    "last",
    [
        Message(role=ROLE_USER, parts=[TEXT]),
        Message(role=ROLE_SYSTEM, parts=[TEXT]),
        Message(role=ROLE_ASSISTANT),
        Message(role=ROLE_ASSISTANT, parts=[TEXT, IMAGE]),
        Message(role=ROLE_ASSISTANT, parts=[TEXT], tool_calls=[gateway_pb2.ToolCall(name="look", arguments="{}")]),
    ],
    ids=["a user's", "instructions", "empty", "an image at the end", "a call of a tool"],
)
def test_only_a_text_of_the_model_can_be_continued(last: Message) -> None:
    with pytest.raises(InvalidArgument) as raised:
        check_conversation([Message(role=ROLE_USER, parts=[TEXT]), last], LIMITS, continues_last=True)
    assert (raised.value.reason, raised.value.field) == ("NOTHING_TO_CONTINUE", "messages[1]")
