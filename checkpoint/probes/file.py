"""Read `probes.jsonl`: questions with known answers.

Each line is one JSON object, either an image or a probe:

    {"image": "<base64 of the file>"}
    {"id": "0001", "slices": {"language": "english"}, "judge": {"exact": "The bag is red."}, "messages": [
        {"role": "user", "content": [{"type": "image", "sha256": "<hex>"}, {"type": "text", "text": "Which colour?"}]}]}

(A probe is one line, too.) Images stand before the probes that name them, or are files beside this one:
`{"type": "image", "file": "bag.png"}`. Many probes can share an image.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chassis.errors import FailedPrecondition, InvalidArgument, TandemError
from chassis.validation import first_problem
from checkpoint.probes.judges import Judge, parse_judge

PROBES_FILE = "probes.jsonl"
MAX_PROBES = 10_000
MAX_FILE_BYTES = 256 * 1024 * 1024
MAX_IMAGE_BYTES = 20 * 1024 * 1024  # the gateway's default
MAX_IMAGES_PER_PROBE = 8  # the gateway's default

_STRICT = ConfigDict(frozen=True, extra="forbid")
# Slices appear in tables and reasons, ids also in logs.
_NAME = r"^[\w][\w .+-]{0,63}$"
Name = Annotated[str, Field(pattern=_NAME)]

ReadImage = Callable[[str], bytes]  # from the name of a file to its content. Raises an OSError or a TandemError.


class _ImagePart(BaseModel):
    model_config = _STRICT
    type: Literal["image"]
    sha256: str | None = None
    file: str | None = None


class _TextPart(BaseModel):
    model_config = _STRICT
    type: Literal["text"]
    text: str = Field(min_length=1)


class _Message(BaseModel):
    model_config = _STRICT
    role: Literal["system", "user", "assistant"]
    content: str | list[Annotated[_ImagePart | _TextPart, Field(discriminator="type")]] = Field(min_length=1)


class _Line(BaseModel):
    """A probe as the file has it."""

    model_config = _STRICT
    id: Name
    messages: list[_Message] = Field(min_length=1, max_length=64)
    judge: dict[str, Any]
    slices: dict[Name, Name] = Field(default={}, max_length=8)
    max_tokens: int = Field(default=128, ge=1, le=4096)
    weight: Any = None  # refused, with a remedy


class _ImageLine(BaseModel):
    model_config = _STRICT
    image: str


@dataclass(frozen=True, slots=True)
class ProbeMessage:
    """One turn of a probe."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[str | bytes, ...]  # texts, and SHA-256 digests (32 bytes) of images


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A conversation whose right answer is known."""

    id: str
    messages: tuple[ProbeMessage, ...]
    judge: Judge
    slices: dict[str, str]  # such as {'language': 'english', 'topic': 'colour'}
    max_tokens: int
    digest: bytes  # SHA-256 of everything but the id, 32 bytes

    @property
    def slice_names(self) -> tuple[str, ...]:
        """The slices it counts in, such as 'topic=colour'."""
        return tuple(f"{name}={value}" for name, value in sorted(self.slices.items()))


@dataclass(frozen=True, slots=True)
class Probes:
    """The probes of a release, with their images."""

    probes: tuple[Probe, ...] = ()
    images: dict[bytes, bytes] = field(default_factory=dict)  # files by SHA-256
    files: tuple[str, ...] = ()  # names of the images that are files beside the probes


def merge_probes(sets: Iterable[Probes]) -> Probes:
    """Return the union of several sets, each probe once.

    A later probe with a known id and another content gets a number behind its id.
    """
    known: dict[bytes, Probe] = {}
    images: dict[bytes, bytes] = {}
    ids: set[str] = set()
    for probes in sets:
        images |= probes.images
        for probe in probes.probes:
            if probe.digest in known:
                continue
            number, unique = 2, probe.id
            while unique in ids:
                number, unique = number + 1, f"{probe.id}.{number}"
            ids.add(unique)
            known[probe.digest] = Probe(
                id=unique,
                messages=probe.messages,
                judge=probe.judge,
                slices=probe.slices,
                max_tokens=probe.max_tokens,
                digest=probe.digest,
            )
    return Probes(tuple(known.values()), images)


def read_probes_file(path: Path) -> Probes:
    """Read a file of probes, with images beside it.

    Raises:
        InvalidArgument: as `parse_probes`. FailedPrecondition: reason 'BAD_PROBES', the file cannot be read.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _error(0, f"the file has more than {MAX_FILE_BYTES} bytes", "TOO_MANY_PROBES")
        content = path.read_bytes()
    except OSError as error:
        raise FailedPrecondition(
            f"The file of probes cannot be read: {error.strerror}.", reason="BAD_PROBES", where=path
        ) from None
    return parse_probes(content, lambda name: (path.parent / name).read_bytes())


def parse_probes(content: bytes, read_image: ReadImage) -> Probes:
    """Parse the content of `probes.jsonl`.

    Args:
        content: of the file.
        read_image: reads an image beside it.

    Raises:
        InvalidArgument: the message names the line. Reason 'BAD_PROBES', 'TOO_MANY_PROBES', 'DUPLICATE_PROBE',
            'PROBE_IMAGE_MISSING', 'PROBE_IMAGE_TOO_LARGE', 'PROBE_WEIGHT', or a reason of `parse_judge`.
    """
    parser = _Parser(read_image)
    for number, line in enumerate(_lines(content), 1):
        if line.strip():
            parser.add(number, line)
    if not parser.probes:
        raise _error(0, "the file has no probe", "BAD_PROBES")
    return Probes(tuple(parser.probes.values()), parser.images, tuple(parser.files))


def _lines(content: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(content):
        end = content.find(b"\n", start)
        end = len(content) if end < 0 else end
        yield content[start:end]
        start = end + 1


class _Parser:
    """Collects the lines of one file."""

    def __init__(self, read_image: ReadImage) -> None:
        self.probes: dict[str, Probe] = {}
        self.images: dict[bytes, bytes] = {}
        self._read_image = read_image
        self.files: dict[str, bytes] = {}  # digests by name

    def add(self, number: int, line: bytes) -> None:
        """Add one line."""
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            raise _error(number, "it is not JSON in UTF-8", "BAD_PROBES") from None
        try:
            if isinstance(fields, dict) and fields.keys() == {"image"}:
                self._add_image(_decoded(_ImageLine.model_validate(fields).image))
            else:
                self._add_probe(_Line.model_validate(fields))
        except ValidationError as error:
            raise _error(number, first_problem(error), "BAD_PROBES") from None
        except InvalidArgument as error:
            raise _error(number, error.message, error.reason) from None

    def _add_probe(self, line: _Line) -> None:
        if "weight" in line.model_fields_set:
            raise InvalidArgument(
                "a probe has no weight, because one answer shows no more than another: name a slice, which is judged "
                "by itself, or add more probes of its kind",
                reason="PROBE_WEIGHT",
            )
        if len(self.probes) >= MAX_PROBES:
            raise InvalidArgument(f"there are more than {MAX_PROBES:,} probes", reason="TOO_MANY_PROBES")
        if line.id in self.probes:
            raise InvalidArgument(f"the id {line.id} is used twice", reason="DUPLICATE_PROBE")
        messages = tuple(self._message(message) for message in line.messages)
        if messages[-1].role != "user":
            raise InvalidArgument("the last message must be the user's", reason="BAD_PROBES")
        if sum(isinstance(part, bytes) for message in messages for part in message.parts) > MAX_IMAGES_PER_PROBE:
            raise InvalidArgument(f"it has more than {MAX_IMAGES_PER_PROBE} images", reason="BAD_PROBES")
        shown = [(message.role, [_plain(part) for part in message.parts]) for message in messages]
        content = json.dumps([shown, line.judge, line.slices, line.max_tokens], sort_keys=True).encode()
        self.probes[line.id] = Probe(
            id=line.id,
            messages=messages,
            judge=parse_judge(line.judge),
            slices=line.slices,
            max_tokens=line.max_tokens,
            digest=hashlib.sha256(content).digest(),
        )

    def _message(self, message: _Message) -> ProbeMessage:
        if isinstance(message.content, str):
            return ProbeMessage(message.role, (message.content,))
        parts = (part.text if isinstance(part, _TextPart) else self._image(part) for part in message.content)
        return ProbeMessage(message.role, tuple(parts))

    def _image(self, part: _ImagePart) -> bytes:
        """Return the digest of an image, read on first use."""
        if (part.sha256 is None) == (part.file is None):
            raise InvalidArgument("an image needs either sha256 or file", reason="BAD_PROBES")
        if part.sha256 is not None:
            try:
                digest = bytes.fromhex(part.sha256)
            except ValueError:
                digest = b""
            if digest not in self.images:
                raise InvalidArgument(
                    f"no earlier line has the image {part.sha256[:12]!r}", reason="PROBE_IMAGE_MISSING"
                )
            return digest
        name = part.file or ""
        if name not in self.files:
            self.files[name] = self._add_image(self._read(name))
        return self.files[name]

    def _read(self, name: str) -> bytes:
        if not name or name != Path(name).name or "\\" in name or "\0" in name:
            raise InvalidArgument("an image's file must be beside the probes", reason="PROBE_IMAGE_MISSING")
        try:
            return self._read_image(name)
        except (OSError, TandemError):
            raise InvalidArgument(f"the image {name!r} cannot be read", reason="PROBE_IMAGE_MISSING") from None

    def _add_image(self, data: bytes) -> bytes:
        if not 0 < len(data) <= MAX_IMAGE_BYTES:
            raise InvalidArgument(
                f"an image has {len(data):,} bytes, at most {MAX_IMAGE_BYTES:,} are allowed",
                reason="PROBE_IMAGE_TOO_LARGE",
            )
        digest = hashlib.sha256(data).digest()
        self.images[digest] = data
        return digest


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidArgument("the image is not base64", reason="BAD_PROBES") from None


def _plain(part: str | bytes) -> list[str]:
    return ["image", part.hex()] if isinstance(part, bytes) else ["text", part]


def _error(line: int, problem: str, reason: str) -> InvalidArgument:
    place = f"Line {line} of the probes" if line else "The file of probes"
    return InvalidArgument(f"{place} is not valid: {problem}.", reason=reason)
