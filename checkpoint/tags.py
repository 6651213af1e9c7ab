"""Tags of released checkpoints: `<name>-v<major>.<minor>.<patch>`."""

import re
from dataclasses import dataclass

from chassis.errors import InvalidArgument

MAX_TAG_CHARS = 128

# A tag is also a folder's name, so it has no separator and does not start with a dot. A number has no leading zero,
# because two spellings of one version would be two tags.
_NUMBER = r"(0|[1-9][0-9]{0,8})"
_TAG = re.compile(rf"([A-Za-z0-9][A-Za-z0-9._-]*)-v{_NUMBER}\.{_NUMBER}\.{_NUMBER}")


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A name and a version.

    Versions sort as numbers: v1.10.0 comes after v1.9.0.
    """

    name: str
    major: int
    minor: int
    patch: int

    def __str__(self) -> str:
        return f"{self.name}-v{self.major}.{self.minor}.{self.patch}"


def split_release(name: str) -> tuple[str, str]:
    """Return the vision and language tags of a release.

    Args:
        name: a tag for both halves, or 'vision tag,language tag'.
    """
    vision_tag, _, language_tag = (part.strip() for part in name.partition(","))
    return vision_tag, language_tag or vision_tag


def parse_tag(text: str) -> Tag:
    """Parse a tag.

    Raises:
        InvalidArgument: BAD_TAG, the text is not a tag.
    """
    match = _TAG.fullmatch(text) if len(text) <= MAX_TAG_CHARS else None
    if match is None:
        raise InvalidArgument(
            f"A tag is <name>-v<major>.<minor>.<patch> of letters, digits, '.', '_' and '-', at most {MAX_TAG_CHARS} "
            f"characters, such as demo-v1.0.0; {text[:MAX_TAG_CHARS]!r} is not a tag.",
            reason="BAD_TAG",
            field="tag",
        )
    name, major, minor, patch = match.groups()
    return Tag(name, int(major), int(minor), int(patch))
