"""Engines on disk, named by everything they depend on.

The name of an engine is a digest of the library, its version, the GPU and the ONNX export. So an engine of other
weights, of another GPU or of another version is never found, and one folder serves machines of several kinds.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from chassis.atomic_file import write_atomically
from chassis.errors import DataLoss, FailedPrecondition
from chassis.validation import first_problem
from vision_service.engines.building import BuiltEngine, ShapeRange
from vision_service.engines.library import Library

ENGINES_FOLDER = "engines"  # in the folder of the ONNX export, so that a new export removes them
_ANY = "any"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineKey:
    """Everything that decides whether an engine may be loaded."""

    library: str  # 'tensorrt' or 'tensorrt_rtx'
    version: str  # of the library. Engines of another version are not loaded
    gpu: str  # its name, or 'any'
    compute_capability: str  # such as '9.0', or 'any'
    onnx_digest: str  # of the ONNX export, hex

    @classmethod
    def portable(cls, library: Library, onnx_digest: bytes) -> Self:
        """Return the key of an engine that fits every GPU."""
        return cls(
            library=library.name,
            version=library.version,
            gpu=_ANY,
            compute_capability=_ANY,
            onnx_digest=onnx_digest.hex(),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of all fields, hex."""
        return _sha256_of_json("tandem/engine/1", asdict(self))

    @property
    def timing_digest(self) -> str:
        """SHA-256 of the fields that timings depend on, hex."""
        fields = asdict(self)
        del fields["onnx_digest"]
        return _sha256_of_json("tandem/timing-cache/1", fields)


class EngineRecord(BaseModel):
    """Describes one engine, stored beside it as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: EngineKey
    profile: dict[str, ShapeRange]  # accepted shapes by input
    engine_sha256: str = Field(pattern="^[0-9a-f]{64}$")  # also the name of its file
    num_bytes: int
    build_s: float
    # Of visual tokens, compared with torch in float32 as in `Export`. None if it was built without a GPU.
    max_error: float | None = None
    mean_error: float | None = None

    @classmethod
    def of(cls, key: EngineKey, profile: Mapping[str, ShapeRange], built: BuiltEngine) -> Self:
        """Return the record of a new engine, without errors."""
        return cls(
            key=key,
            profile=dict(profile),
            engine_sha256=hashlib.sha256(built.plan).hexdigest(),
            num_bytes=len(built.plan),
            build_s=round(built.build_s, 3),
        )


def save_engine(folder: Path, record: EngineRecord, built: BuiltEngine) -> None:
    """Store an engine and its timing cache.

    Replaces an engine of the same key, for example one with another profile. The record is written last, so a reader
    finds the old engine or the new one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = _record_path(folder, record.key)
    old = path.read_text() if path.exists() else ""
    write_atomically(_engine_path(folder, record.engine_sha256), built.plan)
    write_atomically(path, (record.model_dump_json(indent=2) + "\n").encode())
    if built.timing_cache:
        write_atomically(_timing_path(folder, record.key), built.timing_cache)
    _remove_replaced(folder, old, record.engine_sha256)


def find_engine(folder: Path, key: EngineKey) -> tuple[EngineRecord, bytes]:
    """Return the record and the bytes of an engine, verified.

    Raises:
        FailedPrecondition: reason 'NO_ENGINE', none was built for this key. 'BAD_ENGINE', its record is not valid.
        DataLoss: reason 'DIGEST_MISMATCH', the engine is truncated or was changed.
    """
    path = _record_path(folder, key)
    try:
        record = EngineRecord.model_validate_json(path.read_bytes())
    except OSError:
        raise FailedPrecondition(
            f"No engine was built for {key.library} {key.version}, GPU {key.gpu} and this export: run `tandem "
            "checkpoint export TAG --to tensorrt` on such a machine.",
            reason="NO_ENGINE",
            where=folder,
        ) from None
    except ValidationError as error:
        raise FailedPrecondition(
            f"The record of the engine is not valid: {first_problem(error)}.", reason="BAD_ENGINE", where=path
        ) from error
    if record.key != key:  # the record was copied under another name
        raise FailedPrecondition("The record of the engine is of another engine.", reason="BAD_ENGINE", where=path)
    engine = _engine_path(folder, record.engine_sha256)
    try:
        plan = engine.read_bytes()
    except OSError:
        raise FailedPrecondition(
            "The file of the engine is gone: export again.", reason="BAD_ENGINE", where=engine
        ) from None
    if hashlib.sha256(plan).hexdigest() != record.engine_sha256:
        raise DataLoss(
            "The engine is not the one that was built: export again.", reason="DIGEST_MISMATCH", where=engine
        )
    return record, plan


def read_timing_cache(folder: Path, key: EngineKey) -> bytes:
    """Return the timings of earlier builds, if any."""
    try:
        return _timing_path(folder, key).read_bytes()
    except OSError:
        return b""


def _record_path(folder: Path, key: EngineKey) -> Path:
    return folder / f"{key.digest}.json"


def _engine_path(folder: Path, sha256: str) -> Path:
    return folder / f"{sha256}.engine"


def _timing_path(folder: Path, key: EngineKey) -> Path:
    return folder / f"{key.timing_digest}.timings"


def _remove_replaced(folder: Path, old_record: str, sha256: str) -> None:
    """Delete the engine that an older record named."""
    try:
        old = EngineRecord.model_validate_json(old_record)
    except ValidationError:
        return
    if old.engine_sha256 != sha256:
        _engine_path(folder, old.engine_sha256).unlink(missing_ok=True)


def _sha256_of_json(domain: str, fields: object) -> str:
    text = json.dumps([domain, fields], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
