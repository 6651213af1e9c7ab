"""Save a whole checkpoint and its manifest."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import torch
from torch import Tensor

from checkpoint.checks import check_names, check_shapes, check_tied_head
from checkpoint.config import write_config
from checkpoint.families import EMBEDDING, HALVES, HEAD, Half, ModelConfig, TensorSpec
from checkpoint.identity import TensorDigest
from checkpoint.manifest import TEMPLATE_FILE, TOKENIZER_FILE, Manifest, file_sha256, make_manifest, write_manifest
from checkpoint.stored_tensor import tensor_digest
from checkpoint.tags import parse_tag
from checkpoint.tokenizer import CHAT_TEMPLATE, check_tokenizer, read_tokenizer
from checkpoint.torch_tensors import TorchTensor
from checkpoint.weight_writers import Container, PlannedTensor, write_weights

# Called for each written tensor: its name, the bytes written so far, the bytes in total.
OnTensor = Callable[[str, int, int], None]


class FileOptions(TypedDict, total=False):
    """Layout of the weight files."""

    shards: int  # number of weight files, default 1
    container: Container  # kind of weight file, default safetensors
    on_tensor: OnTensor | None  # reports progress


def save(
    folder: Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tag: str,
    *,
    tokenizer_json: str,
    chat_template: str = CHAT_TEMPLATE,
    vision_digest: bytes | None = None,
    dtype: torch.dtype | Callable[[TensorSpec], torch.dtype] | None = None,
    **files: Unpack[FileOptions],
) -> Manifest:
    """Write a whole checkpoint into an empty folder.

    The manifest is written last. Use it with `ModelStore.create`.

    Args:
        folder: the empty folder.
        config: of the model.
        tensors: both halves by canonical name. A tied model's head is not written. The mapping may make tensors on
            demand: one is in memory at a time, or one shard for `.bin`.
        tag: the checkpoint's tag.
        tokenizer_json: content of `tokenizer.json`.
        chat_template: content of `chat_template.jinja`.
        vision_digest: of the vision half that the language half was trained with, 32 bytes. Default: this vision half.
        dtype: stored type of every tensor that may have a float type, or a function that returns it. Default:
            unchanged.
        files: layout of the weight files, see `FileOptions`.

    Raises:
        FailedPrecondition: MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE. BAD_CHECKPOINT for the
            tokenizer.
        InvalidArgument: BAD_TAG, BAD_SHARDS.
    """
    parse_tag(tag)
    check_tokenizer(read_tokenizer(tokenizer_json), config)
    specs = check_names(tensors, config, HALVES, tag)
    # The tie comes first: `in` makes the tensor of a mapping that makes them on demand.
    if config.language.tied_embeddings and HEAD in tensors:
        check_tied_head({name: TorchTensor(tensors[name]) for name in (HEAD, EMBEDDING)}, config, tag)
    plan = [PlannedTensor(spec, _dtype(spec, tensors, dtype)) for spec in specs]
    digests = _write_tensors(folder, tag, tensors, plan, files)
    write_config(config, folder)
    (folder / TOKENIZER_FILE).write_text(tokenizer_json, encoding="utf-8")
    (folder / TEMPLATE_FILE).write_text(chat_template, encoding="utf-8")
    hashes = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    manifest = make_manifest(tag, config, hashes, digests, trained_with=vision_digest)
    write_manifest(manifest, folder)
    return manifest


def _dtype(
    spec: TensorSpec, tensors: Mapping[str, Tensor], dtype: torch.dtype | Callable[[TensorSpec], torch.dtype] | None
) -> torch.dtype:
    """Return the stored type of a tensor."""
    if spec.dtype is not None:
        fixed: torch.dtype = getattr(torch, spec.dtype)
        return fixed
    if dtype is None:
        return tensors[spec.name].dtype
    return dtype if isinstance(dtype, torch.dtype) else dtype(spec)


def _write_tensors(
    folder: Path, tag: str, tensors: Mapping[str, Tensor], plan: Sequence[PlannedTensor], files: FileOptions
) -> dict[Half, dict[str, TensorDigest]]:
    """Write the weight files and return their tensors' digests."""
    bytes_so_far = itertools.accumulate(planned.num_bytes for planned in plan)
    bytes_in_all = sum(planned.num_bytes for planned in plan)
    on_tensor = files.get("on_tensor")
    digests: dict[Half, dict[str, TensorDigest]] = {half: {} for half in HALVES}

    def take(planned: PlannedTensor) -> Tensor:
        spec = planned.spec
        tensor = tensors[spec.name].detach()
        check_shapes({spec.name: TorchTensor(tensor)}, [spec], tag)
        tensor = tensor.to(device="cpu", dtype=planned.dtype).contiguous()
        digests[spec.half][spec.name] = tensor_digest(TorchTensor(tensor))
        if on_tensor:
            on_tensor(spec.name, next(bytes_so_far), bytes_in_all)
        return tensor

    shards, container = files.get("shards", 1), files.get("container", "safetensors")
    write_weights(folder, tag, plan, take, shards=shards, container=container)
    return digests
