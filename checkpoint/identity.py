"""Identify halves, encoders and visual tokens by SHA-256.

Every hash starts with a domain, so digests of different kinds are never equal. Every part is written with its length,
so no two inputs give the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from checkpoint.families import Half, ModelConfig

DIGEST_BYTES = 32
MAX_SALT_BYTES = 64  # of a tenant's cache salt, as in the contract


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """The facts of one tensor that a half's digest covers."""

    dtype: str  # as stored: 'bfloat16', 'float16' or 'float32'
    shape: tuple[int, ...]
    sha256: bytes  # of the elements, row-major, little-endian


def half_digest(config: ModelConfig, half: Half, tensors: Mapping[str, TensorDigest]) -> bytes:
    """Return the digest (32 bytes) of one half.

    It covers the half's configuration and its tensors by canonical name, but neither their order nor their files.
    """
    records = [
        [name, tensor.dtype, list(tensor.shape), tensor.sha256.hex()] for name, tensor in sorted(tensors.items())
    ]
    return _digest(f"tandem/{half}-half/1", _canonical_json(config.half_fields(half)), _canonical_json(records))


def encoder_id(
    *, vision_digest: bytes, preprocessing: str, precision: str, backend: str, export_digest: bytes = b""
) -> bytes:
    """Return the identity (32 bytes) of an encoder.

    It covers everything that affects the visual tokens of an image.

    Args:
        vision_digest: of the vision half.
        preprocessing: name of the way from an image to pixels.
        precision: type of the arithmetic.
        backend: kind of backend.
        export_digest: of the export that runs. Empty if the backend runs the checkpoint's own weights.
    """
    parts = (vision_digest, preprocessing.encode(), precision.encode(), backend.encode())
    return _digest("tandem/encoder/1", *parts, *([export_digest] if export_digest else []))


def visual_key(*, encoder_id: bytes, cache_salt: bytes, image_sha256: bytes) -> bytes:
    """Return the key (32 bytes) of one image's visual tokens.

    Tenants with different salts share no keys.
    """
    return _digest("tandem/visual-key/1", encoder_id, cache_salt, image_sha256)


def _digest(domain: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in (domain.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))  # lengths keep ('ab', 'c') and ('a', 'bc') apart
        digest.update(part)
    return digest.digest()


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
