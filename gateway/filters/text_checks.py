"""Refuse texts with control characters, and questions without words."""

import re
import unicodedata

from chassis.errors import InvalidArgument
from processing import ChatMessage

# Control characters that no document has. `gateway.answer.checks` has cleaned the others.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
# The model and the tools wrote the other messages, so their client could not mend them.
_CHECKED_ROLES = ("system", "user")
# Shorter texts such as '???' and '...' are questions, not noise.
_MIN_NOISE_CHARACTERS = 16


def check_text(messages: list[ChatMessage]) -> None:
    """Check a conversation for control characters and noise.

    Raises:
        InvalidArgument: reason 'CONTROL_CHARACTER' or 'ONLY_NOISE'. `field` names the text.
    """
    for index, message in enumerate(messages):
        if message["role"] not in _CHECKED_ROLES:
            continue
        for part_index, part in enumerate(message["content"]):
            if part["type"] == "text" and (match := _CONTROL.search(part["text"])):
                raise InvalidArgument(
                    f"Remove the control character U+{ord(match[0]):04X} from the text.",
                    reason="CONTROL_CHARACTER",
                    field=f"messages[{index}].parts[{part_index}].text",
                )
    question = "".join(part["text"] for part in messages[-1]["content"] if part["type"] == "text")
    if messages[-1]["role"] == "user" and _is_noise(question):
        raise InvalidArgument(
            "The last message has neither words nor numbers: ask a question in it.",
            reason="ONLY_NOISE",
            field=f"messages[{len(messages) - 1}].parts",
        )


def _is_noise(text: str) -> bool:
    """Return whether a long text has no meaning.

    That is a text without a letter, digit or pictograph.
    """
    text = "".join(text.split())
    if len(text) < _MIN_NOISE_CHARACTERS or any(map(str.isalnum, text)):
        return False
    return not any(unicodedata.category(character) == "So" for character in text)
