"""Find and check the files of a Hub folder.

Needs no torch, except for `.bin` and quantized weights.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ValidationError

from chassis.errors import FailedPrecondition, InvalidArgument
from chassis.validation import first_problem
from checkpoint.checks import check_names, check_weights
from checkpoint.families import HALVES, ModelConfig, TensorSpec
from checkpoint.hub_config import needed_files, read_hub_config
from checkpoint.manifest import TEMPLATE_FILE, TOKENIZER_FILE
from checkpoint.sentencepiece import MODEL_FILE, to_tokenizer_json
from checkpoint.tokenizer import check_tokenizer, read_tokenizer
from checkpoint.weight_files import SUFFIXES, WeightFiles, open_folder

if TYPE_CHECKING:
    from checkpoint.foreign_quantization import ConvertedTensors

_TEMPLATE_JSON = "chat_template.json"
_TOKENIZER_CONFIG = "tokenizer_config.json"
_POINTER = b"version https://git-lfs"  # the beginning of a Git LFS pointer


class _NamedTemplate(BaseModel):
    name: str
    template: str


class _TemplateHolder(BaseModel):
    """A JSON file with a chat template, or several."""

    chat_template: str | list[_NamedTemplate] | None = None

    def default(self) -> str | None:
        """Return the template for conversations without tools."""
        if isinstance(self.chat_template, list):
            return next((one.template for one in self.chat_template if one.name == "default"), None)
        return self.chat_template


@dataclass(frozen=True, slots=True)
class HubFolder:
    """A checked Hub folder."""

    config: ModelConfig
    tokenizer_json: str
    chat_template: str
    weights: WeightFiles
    index: Path | None  # of the weights
    specs: list[TensorSpec]  # every tensor of the model
    converted: "ConvertedTensors | None"  # the tensors of AWQ or GPTQ files in our form


def open_hub_folder(folder: Path) -> HubFolder:
    """Read and check the files of a Hub folder.

    The elements of tensors are not read.

    Raises:
        InvalidArgument: BAD_SOURCE, it is not a folder.
        FailedPrecondition: MISSING_FILES, with all names. BAD_CHECKPOINT, a file is not valid, or the model is not
            supported. MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE, with the names. NOT_INSTALLED, a library that
            reads the files is missing.
    """
    if not folder.is_dir():
        raise InvalidArgument(f"There is no folder {folder.name}.", reason="BAD_SOURCE", where=folder)
    template = _chat_template(folder)
    missing = [*_missing_files(folder), *_missing_weights(folder)]
    if missing or template is None:
        raise _lacks(folder, missing if template else [*missing, TEMPLATE_FILE])
    tokenizer_json = _tokenizer(folder)
    tokenizer = read_tokenizer(tokenizer_json)
    config = read_hub_config(folder, tokenizer.id_to_token)
    check_tokenizer(tokenizer, config)
    weights = open_folder(folder)
    converted = _converted(folder, weights, config)
    if converted is not None:
        config = converted.config
    return HubFolder(
        config=config,
        tokenizer_json=tokenizer_json,
        chat_template=template,
        weights=weights,
        index=_index(folder, weights),
        specs=(
            check_weights(weights, config, HALVES, folder.name)
            if converted is None
            else check_names(converted, config, HALVES, folder.name)
        ),
        converted=converted,
    )


def _converted(folder: Path, weights: WeightFiles, config: ModelConfig) -> "ConvertedTensors | None":
    if not any(name.endswith(".qweight") for name in weights):
        return None
    from checkpoint.foreign_quantization import ConvertedTensors, zeros_minus_one  # others need no torch

    return ConvertedTensors(weights, config, folder.name, zeros_minus_one=zeros_minus_one(folder))


def _missing_files(folder: Path) -> Iterator[str]:
    """Yield the names of missing files, except weights."""
    for name, others in {**needed_files(folder), TOKENIZER_FILE: (MODEL_FILE,)}.items():
        if all(_is_missing(folder / one) for one in (name, *others)):
            yield name


def _missing_weights(folder: Path) -> list[str]:
    """Return the names of missing weight files."""
    if any(folder.glob("*.index.json")):
        return [name for name, path in open_folder(folder).paths().items() if _is_missing(path)]
    for suffix in SUFFIXES:
        if weights := sorted(folder.glob(f"*{suffix}")):
            return [path.name for path in weights if _is_missing(path)]
    return ["model.safetensors"]


def _index(folder: Path, weights: WeightFiles) -> Path | None:
    suffix = next(iter(weights.paths().values())).suffix
    return next(folder.glob(f"*{suffix}.index.json"), None)


def _is_missing(path: Path) -> bool:
    """Return whether a file was not downloaded.

    It is absent, a broken link, or a Git LFS pointer.
    """
    if not path.is_file():
        return True
    with path.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER


def _lacks(folder: Path, names: Iterable[str]) -> FailedPrecondition:
    return FailedPrecondition(
        f"The folder {folder.name} lacks {', '.join(names)}: download what is missing, then import again.",
        reason="MISSING_FILES",
        where=folder,
    )


def _tokenizer(folder: Path) -> str:
    if _is_missing(folder / TOKENIZER_FILE):
        return to_tokenizer_json(folder)
    return _text(folder / TOKENIZER_FILE)


def _chat_template(folder: Path) -> str | None:
    """Return the chat template, None without one."""
    if not _is_missing(folder / TEMPLATE_FILE):
        return _text(folder / TEMPLATE_FILE)
    for name in (_TEMPLATE_JSON, _TOKENIZER_CONFIG):
        if _is_missing(folder / name):
            continue
        try:
            template = _TemplateHolder.model_validate_json(_text(folder / name)).default()
        except ValidationError as error:
            raise FailedPrecondition(
                f"The file {name} of {folder.name} is not valid: {first_problem(error)}.", reason="BAD_CHECKPOINT"
            ) from error
        if template:
            return template
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise FailedPrecondition(f"The file {path.name} is not UTF-8 text.", reason="BAD_CHECKPOINT") from error
