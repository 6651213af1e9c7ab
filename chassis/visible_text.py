"""Show foreign text in a terminal without obeying it."""

import re

# All but line feed and tab: C0 with ESC, DEL, and C1, whose CSI begins a command in one character.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def visible(text: str) -> str:
    r"""Escape control characters: ESC becomes `\u001b`, as in JSON.

    A terminal obeys them: they can rewrite what was shown, set its title, or type commands.
    """
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
