"""Make a checkpoint from foreign weight files.

They may have other tensor names, another container and no manifest. Those of AWQ and GPTQ are converted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from chassis.errors import FailedPrecondition, InvalidArgument
from checkpoint.config import parse_config
from checkpoint.foreign_quantization import ConvertedTensors, is_foreign, zeros_minus_one
from checkpoint.manifest import TEMPLATE_FILE, TOKENIZER_FILE, Manifest
from checkpoint.saving import FileOptions, save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import CHAT_TEMPLATE
from checkpoint.torch_tensors import as_torch
from checkpoint.weight_files import SUFFIXES, WeightFiles, open_files, open_folder


def pack(
    sources: Sequence[Path],
    root: Path,
    tag: str,
    *,
    config: Path,
    tokenizer: Path | None = None,
    chat_template: Path | None = None,
    dtype: torch.dtype | None = None,
    **files: Unpack[FileOptions],
) -> Manifest:
    """Make a checkpoint from foreign weights in a model store.

    Args:
        sources: one folder or several weight files.
        root: the model store.
        tag: the new checkpoint's tag.
        config: the model's `config.json`.
        tokenizer: `tokenizer.json`. Default: the one next to the weights.
        chat_template: the chat template. Default: the one next to the weights, else ours.
        dtype: stored type of every tensor. Default: unchanged.
        files: layout of the weight files, see `FileOptions`.

    Raises:
        InvalidArgument: BAD_TAG, BAD_SHARDS, BAD_SOURCE.
        FailedPrecondition: TAG_EXISTS, BAD_CHECKPOINT, BAD_LOW_BIT, MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE.
    """
    source_folder, weights = _open(sources)
    model = parse_config(_read(config), config.name)
    tensors: Mapping[str, Tensor] = {name: as_torch(tensor) for name, tensor in weights.items()}
    if is_foreign(weights):
        old = zeros_minus_one(source_folder)
        tensors = converted = ConvertedTensors(weights, model, source_folder.name, zeros_minus_one=old)
        model = converted.config
    template = chat_template or source_folder / TEMPLATE_FILE
    with ModelStore(root).create(tag) as folder:
        return save(
            folder,
            model,
            tensors,
            tag,
            tokenizer_json=_read(tokenizer or source_folder / TOKENIZER_FILE),
            chat_template=_read(template) if chat_template or template.exists() else CHAT_TEMPLATE,
            dtype=dtype,
            **files,
        )


def _open(sources: Sequence[Path]) -> tuple[Path, WeightFiles]:
    """Return the folder of the weights, and the weights."""
    if len(sources) == 1 and sources[0].is_dir():
        return sources[0], open_folder(sources[0])
    strange = [path.name for path in sources if not path.is_file() or path.suffix not in SUFFIXES]
    if strange or not sources:
        raise InvalidArgument(
            f"Give one folder or weight files (*.safetensors, *.bin), not {', '.join(strange) or 'nothing'}.",
            reason="BAD_SOURCE",
        )
    return sources[0].parent, open_files(sources)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPrecondition(f"The file {path.name} is missing or not text.", reason="BAD_CHECKPOINT") from error
