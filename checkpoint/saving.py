"""Save a whole checkpoint: both halves, tokenizer and chat template, and the manifest that seals them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from checkpoint.config import ModelConfig, write_config
from checkpoint.identity import TensorDigest, half_digest
from checkpoint.layout import HALVES, Half
from checkpoint.manifest import (
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    LanguageEntry,
    Manifest,
    VisionEntry,
    file_sha256,
    write_manifest,
)
from checkpoint.tags import parse_tag
from checkpoint.tokenizer import CHAT_TEMPLATE, check_tokenizer
from checkpoint.weight_writers import Container, Stored, write_weights
from checkpoint.weights import check_names, check_shapes, check_tied_head, tensor_digest

# Told of each tensor written: its name, the bytes written so far with it, the bytes there are to write.
OnTensor = Callable[[str, int, int], None]


class FileOptions(TypedDict, total=False):
    """How weights are put into files."""

    shards: int  # number of weight files; 1 where left out
    container: Container  # kind of weight file; safetensors where left out
    on_tensor: OnTensor | None  # shows progress


def save(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tag: str,
    *,
    tokenizer_json: str,
    chat_template: str = CHAT_TEMPLATE,
    vision_digest: bytes | None = None,
    dtype: torch.dtype | None = None,
    **files: Unpack[FileOptions],
) -> Manifest:
    """Write a whole checkpoint into an empty folder, its manifest last; use with `ModelStore.create`.

    Args:
        folder: where to.
        config: of the model.
        tensors: by canonical name, both halves; a head equal to the embedding is left out of a tied model. It may make
            each tensor only when it is asked for: one at a time is in memory (one shard for `.bin`).
        tag: the checkpoint's tag.
        tokenizer_json: content of `tokenizer.json`.
        chat_template: content of `chat_template.jinja`.
        vision_digest: of the vision half the language half was trained with, 32 bytes; this one's where left out.
        dtype: stored type of every tensor; each keeps its own where left out.
        files: see `FileOptions`.

    Raises:
        FailedPrecondition: MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE, or BAD_CHECKPOINT for the tokenizer.
        InvalidArgument: BAD_TAG, BAD_SHARDS.
    """
    parse_tag(tag)
    check_tokenizer(tokenizer_json, config)
    specs = check_names(tensors, config, HALVES, tag)
    check_tied_head(tensors, config, tag)
    plan = [Stored(spec, dtype or tensors[spec.name].dtype) for spec in specs]
    digests = _write_tensors(folder, tag, tensors, plan, files)
    write_config(config, folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
    (folder / TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
    manifest = _manifest(folder, tag, config, digests, vision_digest)
    write_manifest(manifest, folder)
    return manifest


def _write_tensors(
    folder: Path, tag: str, tensors: Mapping[str, Tensor], plan: Sequence[Stored], files: FileOptions
) -> dict[Half, dict[str, TensorDigest]]:
    """Write the weight files; return the digest of each tensor as it was written."""
    bytes_so_far = itertools.accumulate(stored.num_bytes for stored in plan)
    bytes_in_all = sum(stored.num_bytes for stored in plan)
    on_tensor = files.get("on_tensor")
    digests: dict[Half, dict[str, TensorDigest]] = {half: {} for half in HALVES}

    def take(stored: Stored) -> Tensor:
        spec = stored.spec
        tensor = tensors[spec.name].detach()
        check_shapes({spec.name: tensor}, [spec], tag)
        tensor = tensor.to(device="cpu", dtype=stored.dtype).contiguous()
        digests[spec.half][spec.name] = tensor_digest(tensor)
        if on_tensor:
            on_tensor(spec.name, next(bytes_so_far), bytes_in_all)
        return tensor

    shards, container = files.get("shards", 1), files.get("container", "safetensors")
    write_weights(folder, tag, plan, take, shards=shards, container=container)
    return digests


def _manifest(
    folder: Path,
    tag: str,
    config: ModelConfig,
    digests: Mapping[Half, Mapping[str, TensorDigest]],
    trained_with: bytes | None,
) -> Manifest:
    vision_digest, language_digest = (half_digest(config, half, digests[half]) for half in HALVES)
    return Manifest(
        tag=tag,
        files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        vision=VisionEntry(digest=vision_digest),
        language=LanguageEntry(digest=language_digest, vision_digest=trained_with or vision_digest),
    )
