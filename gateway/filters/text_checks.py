"""What is refused of the text people send, before any model sees it."""

import re
import unicodedata

from chassis.errors import InvalidArgument
from processing import ChatMessage

# Of the control characters only tab and the ends of lines mean something in a text.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# Shorter than this, '???' and '...' are questions.
_NOISE_CHARACTERS = 16


def check_text(messages: list[ChatMessage]) -> None:
    """Check every text of a conversation for control characters, and that the last turn says something.

    Raises:
        InvalidArgument: reason 'CONTROL_CHARACTER' or 'ONLY_NOISE'; `field` says where.
    """
    for index, message in enumerate(messages):
        for place, part in enumerate(message["content"]):
            if part["type"] == "text" and (found := _CONTROL.search(part["text"])):
                raise InvalidArgument(
                    f"The text has the control character U+{ord(found[0]):04X}.",
                    reason="CONTROL_CHARACTER",
                    field=f"messages[{index}].parts[{place}].text",
                )
    question = "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
    if _is_noise(question):
        raise InvalidArgument(
            "The last message says nothing: it has neither words nor numbers.",
            reason="ONLY_NOISE",
            field=f"messages[{len(messages) - 1}].parts",
        )


def _is_noise(text: str) -> bool:
    """Return whether a text is long and holds no letter, number or pictograph, or one of them over and over."""
    text = "".join(text.split())
    if len(text) < _NOISE_CHARACTERS:
        return False
    if any(map(str.isalnum, text)):
        return len(set(text)) == 1
    return not any(unicodedata.category(character) == "So" for character in text)
