"""Read and write `manifest.json`, the digests of a checkpoint.

Needs no torch.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from chassis.errors import DataLoss, FailedPrecondition
from chassis.validation import first_problem
from checkpoint.config import CONFIG_FILE, parse_config
from checkpoint.families import HALVES, Half, ModelConfig
from checkpoint.identity import DIGEST_BYTES, TensorDigest, half_digest
from checkpoint.small_files import read_small_file
from checkpoint.tags import MAX_TAG_CHARS

MANIFEST_FILE = "manifest.json"
TOKENIZER_FILE = "tokenizer.json"
TEMPLATE_FILE = "chat_template.jinja"

_CHUNK_BYTES = 4 * 1024 * 1024  # of a file that is hashed

Digest = Annotated[bytes, Field(min_length=DIGEST_BYTES, max_length=DIGEST_BYTES)]


class Record(BaseModel):
    """A frozen record, with digests in hex in the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", val_json_bytes="hex", ser_json_bytes="hex")


class VisionEntry(Record):
    """Digests of the vision half."""

    digest: Digest


class LanguageEntry(Record):
    """Digests of the language half."""

    digest: Digest
    vision_digest: Digest  # of the vision half it was trained with, the only one it understands


class Manifest(Record):
    """The digests of one checkpoint."""

    tag: str = Field(max_length=MAX_TAG_CHARS)
    files: dict[str, Digest]  # SHA-256 of every other file of the folder, by name
    vision: VisionEntry
    language: LanguageEntry

    @model_validator(mode="after")
    def check(self) -> Self:
        """Refuse names that lead out of the folder."""
        for name in self.files:
            if not is_plain_name(name):
                raise ValueError(f"{name!r} is not the name of a file in the folder")
        return self

    def half_digest(self, half: Half) -> bytes:
        """Return the digest (32 bytes) of one half."""
        return self.vision.digest if half == "vision" else self.language.digest


def is_plain_name(name: str) -> bool:
    """Return whether `name` is a file name without a path."""
    return name not in ("", ".", "..") and "/" not in name and "\\" not in name and "\0" not in name


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a checkpoint folder.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the file is missing or invalid, or its tag is not the folder's name.
    """
    try:
        manifest = Manifest.model_validate_json(read_small_file(folder / MANIFEST_FILE))
    except OSError as error:
        raise FailedPrecondition(
            f"Checkpoint {folder.name} has no readable {MANIFEST_FILE}.", reason="BAD_CHECKPOINT"
        ) from error
    except ValidationError as error:
        raise FailedPrecondition(
            f"The file {MANIFEST_FILE} of {folder.name} is not valid: {first_problem(error)}.", reason="BAD_CHECKPOINT"
        ) from error
    if manifest.tag != folder.name:
        raise FailedPrecondition(
            f"The file {MANIFEST_FILE} of {folder.name} belongs to {manifest.tag}.", reason="BAD_CHECKPOINT"
        )
    return manifest


def make_manifest(
    tag: str,
    config: ModelConfig,
    files: Mapping[str, bytes],
    tensors: Mapping[Half, Mapping[str, TensorDigest]],
    *,
    trained_with: bytes | None = None,
) -> Manifest:
    """Return the manifest of a new checkpoint.

    Args:
        tag: the checkpoint's tag.
        config: of the model.
        files: SHA-256 of every file by name.
        tensors: the tensors of each half by canonical name.
        trained_with: digest of the vision half that the language half was trained with. Default: this vision half.
    """
    vision_digest, language_digest = (half_digest(config, half, tensors[half]) for half in HALVES)
    return Manifest(
        tag=tag,
        files=dict(files),
        vision=VisionEntry(digest=vision_digest),
        language=LanguageEntry(digest=language_digest, vision_digest=trained_with or vision_digest),
    )


def write_manifest(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`, the last file of a checkpoint.

    A folder without a manifest is not a checkpoint.
    """
    (folder / MANIFEST_FILE).write_text(manifest_text(manifest))


def manifest_text(manifest: Manifest) -> str:
    """Return the content of `manifest.json`."""
    return manifest.model_dump_json(indent=2) + "\n"


def read_verified(folder: Path, manifest: Manifest, name: str) -> bytes:
    """Read a small file of a checkpoint, verified.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the file is missing, or not named by the manifest.
        DataLoss: DIGEST_MISMATCH, the file was changed.
    """
    if name not in manifest.files:
        raise FailedPrecondition(
            f"The file {MANIFEST_FILE} of {folder.name} does not name {name}.", reason="BAD_CHECKPOINT"
        )
    try:
        content = read_small_file(folder / name)
    except OSError as error:
        raise FailedPrecondition(
            f"Checkpoint {folder.name} has no readable {name}.", reason="BAD_CHECKPOINT"
        ) from error
    if hashlib.sha256(content).digest() != manifest.files[name]:
        raise DataLoss(f"The file {name} of {folder.name} is not the one its manifest names.", reason="DIGEST_MISMATCH")
    return content


def read_verified_config(folder: Path, manifest: Manifest) -> ModelConfig:
    """Read the configuration of a checkpoint, verified.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the file is missing or does not describe a model.
        DataLoss: DIGEST_MISMATCH, the file was changed.
    """
    return parse_config(read_verified(folder, manifest, CONFIG_FILE), f"{CONFIG_FILE} of {folder.name}")


def tokenizer_digest(folder: Path) -> bytes:
    """Return the verified SHA-256 (32 bytes) of `tokenizer.json`.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, the file or the manifest is missing or not valid.
        DataLoss: DIGEST_MISMATCH, the file was changed.
    """
    return hashlib.sha256(read_verified(folder, read_manifest(folder), TOKENIZER_FILE)).digest()


def file_sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> bytes:
    """Return the SHA-256 (32 bytes) of a large file.

    Args:
        path: of the file.
        on_bytes: called with the number of bytes of each chunk that was hashed.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            if on_bytes:
                on_bytes(len(chunk))
    return digest.digest()
