"""Which conversations share a prefix."""

from gateway.answer.prefix import prefix_digest
from processing import ChatMessage

CAT, DOG = bytes(32), bytes([1] * 32)
IMAGE = {"type": "image"}
SYSTEM: ChatMessage = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}


def user(*parts: object) -> ChatMessage:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}  # type: ignore[typeddict-item]


def assistant(text: str) -> ChatMessage:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def test_a_conversation_keeps_its_digest_as_it_goes_on() -> None:
    for first, images in ((user("Hello"), []), (user(IMAGE, "What is it?"), [CAT]), (user("See:", IMAGE), [CAT])):
        begun = prefix_digest([SYSTEM, first], images, b"salt")
        later = [SYSTEM, first, assistant("A cat."), user(IMAGE, "And this?")]
        assert prefix_digest(later, [*images, DOG], b"salt") == begun


def test_other_questions_about_an_image_have_the_same_digest() -> None:
    one, other = (prefix_digest([SYSTEM, user(IMAGE, text)], [CAT], b"salt") for text in ("What?", "Where?"))
    assert one == other


def test_what_comes_before_the_first_question_counts() -> None:
    digests = [
        prefix_digest(messages, images, salt)
        for messages, images, salt in (
            ([SYSTEM, user(IMAGE, "What?")], [CAT], b"salt"),
            ([SYSTEM, user(IMAGE, "What?")], [DOG], b"salt"),
            ([SYSTEM, user(IMAGE, "What?")], [CAT], b"other"),
            ([user(IMAGE, "What?")], [CAT], b"salt"),
            ([SYSTEM, user("What?", IMAGE)], [CAT], b"salt"),
            ([SYSTEM, user("What?")], [], b"salt"),
            ([SYSTEM, user("Where?")], [], b"salt"),
        )
    ]
    assert len(set(digests)) == len(digests)
