"""Read conversations with images from files or memory."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol, cast

import numpy as np
from PIL import Image

from chassis.errors import InvalidArgument
from processing.chat_template import ChatMessage, ImagePart, TextPart
from processing.image_files import damaged_image, load_upright, open_image_file, rejected_image

_ROLES = ("system", "user", "assistant")
# Text has no control characters except tabs and line breaks. U+FFFD stands for bytes that an earlier reader lost.
_GARBLED = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffd]")


class Turn(Protocol):
    """One message of a conversation, such as `tandem.user(...)` returns."""

    @property
    def role(self) -> str:
        """The speaker: system, user or assistant."""
        ...

    @property
    def parts(self) -> Sequence[object]:
        """Text and images in order.

        A string is text. An image is a path, the bytes of a file, a Pillow image, a uint8 array [height, width] or
        [height, width, 3 or 4], or an object with one of these or the name of a file as its `source`.
        """
        ...


@dataclass(slots=True)
class Sample:
    """One conversation for the chat template, with its images."""

    place: str  # its field in the batch: 'samples[3]'
    messages: list[ChatMessage] = field(default_factory=list)
    images: list[Image.Image] = field(default_factory=list)  # upright, 8-bit RGB
    image_fields: list[str] = field(default_factory=list)  # 'samples[3].messages[0].parts[1].image'


def read_sample(turns: Sequence[Turn], place: str) -> Sample:
    """Check one conversation and decode its images.

    Args:
        turns: the messages.
        place: the field of the conversation, for errors.

    Raises:
        InvalidArgument: reason 'NO_MESSAGES', 'BAD_ROLE', 'EMPTY_MESSAGE', 'BAD_PART', 'GARBLED_TEXT', or that of an
            image: 'IMAGE_EMPTY', 'IMAGE_UNREADABLE', 'IMAGE_UNSUPPORTED', 'IMAGE_TOO_MANY_PIXELS' or
            'IMAGE_TRUNCATED'. Message and field name the place.
    """
    sample = Sample(place)
    if not turns:
        raise _invalid("NO_MESSAGES", "The conversation is empty.", f"{place}.messages")
    for index, turn in enumerate(turns):
        at = f"{place}.messages[{index}]"
        if turn.role not in _ROLES:
            raise _invalid("BAD_ROLE", "The role must be system, user or assistant.", f"{at}.role")
        if not turn.parts:
            raise _invalid("EMPTY_MESSAGE", "The message is empty: give it a text or an image.", f"{at}.parts")
        role = cast(Literal["system", "user", "assistant"], turn.role)
        content = [_read_part(part, sample, f"{at}.parts[{number}]") for number, part in enumerate(turn.parts)]
        sample.messages.append({"role": role, "content": content})
    return sample


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Put a field into the errors of the block."""
    try:
        yield
    except InvalidArgument as error:
        named = _invalid(error.reason, error.message, place)
        named.metadata, named.where = error.metadata, error.where
        raise named from error


def _read_part(part: object, sample: Sample, place: str) -> TextPart | ImagePart:
    """Return a part for the template, and keep its image."""
    if isinstance(part, str):
        if found := _GARBLED.search(part):
            character = f"U+{ord(found[0]):04X} at position {found.start()}"
            raise _invalid("GARBLED_TEXT", f"The text is garbled: it has {character}.", f"{place}.text")
        return {"type": "text", "text": part}
    source = getattr(part, "source", part)
    with naming(f"{place}.image"):
        sample.images.append(_read_image(source))
    sample.image_fields.append(f"{place}.image")
    return {"type": "image"}


def _read_image(source: object) -> Image.Image:
    """Return an image as upright RGB."""
    match source:
        case bytes():
            return _decode(source)
        case str() | Path():
            return _decode(_read_file(Path(source)))
        case Image.Image():
            return load_upright(source)
        case np.ndarray():
            return load_upright(_from_array(source))
    raise InvalidArgument(
        f"A part must be text, a path, bytes, a Pillow image or an array, not {type(source).__name__}.",
        reason="BAD_PART",
    )


def _decode(data: bytes) -> Image.Image:
    with open_image_file(data) as image:
        return load_upright(image)


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        message = f"The file cannot be read: {error.strerror}."
        raise InvalidArgument(message, reason="IMAGE_UNREADABLE", where=path) from error


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise rejected_image(
            "IMAGE_UNSUPPORTED",
            f"Give arrays as uint8 [height, width] or [height, width, 3 or 4], not {array.dtype} {list(array.shape)}.",
        )
    if not array.size:
        raise rejected_image("IMAGE_EMPTY", "The array has no pixels.")
    try:
        return Image.fromarray(array)
    except Exception as error:  # sides beyond Pillow's limits
        raise damaged_image() from error


def _invalid(reason: str, message: str, place: str) -> InvalidArgument:
    return InvalidArgument(f"{place}: {message}", reason=reason, field=place)
