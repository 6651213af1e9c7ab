"""Who is who, by SHA-256: a half of a checkpoint, an encoder, the visual tokens of one image. Needs no torch.

Every digest starts with a domain, so a digest of one kind can never pass for another, and every part is written so that
no two inputs run into the same bytes.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from checkpoint.config import ModelConfig
from checkpoint.layout import Half

DIGEST_BYTES = 32
MAX_SALT_BYTES = 64  # of a tenant's cache salt, as in the contract


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """What a half's digest takes from one tensor."""

    dtype: str  # as stored: 'bfloat16', 'float16' or 'float32'
    shape: tuple[int, ...]
    sha256: bytes  # of the elements, row-major, little-endian


def half_digest(config: ModelConfig, half: Half, tensors: Mapping[str, TensorDigest]) -> bytes:
    """Return the digest (32 bytes) of one half: its configuration and its tensors by canonical name.

    How the tensors lie in files, and in which order, makes no difference.
    """
    records = [
        [name, tensor.dtype, list(tensor.shape), tensor.sha256.hex()] for name, tensor in sorted(tensors.items())
    ]
    return _digest(f"tandem/{half}-half/1", _canonical_json(half_config(config, half)), _canonical_json(records))


def half_config(config: ModelConfig, half: Half) -> dict[str, object]:
    """Return what one half's behaviour depends on, fields at their default left out.

    Leaving them out keeps the digests of released checkpoints when a field is added, whose default then has to mean
    what was done before. The defaults themselves never change; a test holds them.
    """
    fields = config.model_dump(mode="json", exclude_defaults=True)
    if half == "vision":
        return {
            "vision": fields["vision"],
            "resampler": fields["resampler"],
            "token_width": config.language.width,
        }
    return {"language": fields["language"], "num_visual_tokens": config.num_visual_tokens}


def encoder_id(*, vision_digest: bytes, preprocessing: str, precision: str, backend: str) -> bytes:
    """Return the identity (32 bytes) of an encoder: all that decides which visual tokens an image becomes."""
    return _digest("tandem/encoder/1", vision_digest, preprocessing.encode(), precision.encode(), backend.encode())


def visual_key(*, encoder_id: bytes, cache_salt: bytes, image_sha256: bytes) -> bytes:
    """Return the key (32 bytes) of one image's visual tokens; tenants with different salts share none."""
    return _digest("tandem/visual-key/1", encoder_id, cache_salt, image_sha256)


def _digest(domain: str, *parts: bytes) -> bytes:
    digest = hashlib.sha256()
    for part in (domain.encode(), *parts):
        digest.update(len(part).to_bytes(8, "little"))  # lengths keep ('ab', 'c') and ('a', 'bc') apart
        digest.update(part)
    return digest.digest()


def _canonical_json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()
