"""List the checkpoints of a model store. Needs no torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chassis.errors import TandemError
from checkpoint.config import read_config
from checkpoint.families import layout
from checkpoint.manifest import read_manifest
from checkpoint.store import ModelStore


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreEntry:
    """One checkpoint of a store.

    Only tag and problem are set if it cannot be read.
    """

    tag: str
    problem: str | None = None  # the reason why it cannot be read
    family: str = ""  # 'resampler' or 'qwen3_vl'
    kind: str = ""  # the family's variant: 'resampler', 'direct' or 'qwen3_vl'
    quantization: str = ""  # of the decoder's matrices, such as 'w4a16 g128'. Empty: they have a float type.
    num_parameters: int = 0
    num_files: int = 0  # manifest included
    num_bytes: int = 0  # of all files
    vision_digest: bytes = b""  # 32 bytes
    language_digest: bytes = b""  # 32 bytes


def list_store(store: ModelStore) -> Iterator[StoreEntry]:
    """Yield every checkpoint of a store, sorted by tag.

    Reads the manifest and the configuration of each, and verifies nothing.
    """
    for tag in store.tags():
        try:
            yield _entry(store.folder(tag))
        except TandemError as error:
            yield StoreEntry(tag=tag, problem=error.message)


def _entry(folder: Path) -> StoreEntry:
    manifest, config = read_manifest(folder), read_config(folder)
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    return StoreEntry(
        tag=folder.name,
        family=config.family,
        kind=config.kind,
        quantization=str(config.language.quantization or ""),
        num_parameters=sum(spec.num_parameters for spec in layout(config)),
        num_files=len(sizes),
        num_bytes=sum(sizes),
        vision_digest=manifest.vision.digest,
        language_digest=manifest.language.digest,
    )
