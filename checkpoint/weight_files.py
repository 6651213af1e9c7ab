"""Find and open the weight files of a checkpoint folder.

The files are safetensors or torch `.bin`: one file, or shards with an index. Tensors are views of the mapped files, so
opening reads no elements. Only `.bin` files need torch.
"""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from chassis.errors import FailedPrecondition
from checkpoint.manifest import is_plain_name
from checkpoint.safetensors_file import read_safetensors
from checkpoint.stored_tensor import ELEMENT_BYTES, StoredTensor

log = logging.getLogger(__name__)  # the plain install has no structlog

SUFFIXES = (".safetensors", ".bin")
_IGNORED = "language_model.embed_positions.weight"  # a static table of positions, unused with rotary positions
_ALIASES = (
    # Transformers stores Qwen3-VL with the prefix 'model'. Older exports leave it out.
    (re.compile(r"^model\.(visual|language_model)\."), r"\1."),
    # A text decoder released alone (Llama, Qwen2, Qwen3) has the prefix 'model'.
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"language_model.\1."),
    (re.compile(r"^(language_model\.layers\.\d+)\.attn\."), r"\1.self_attn."),
    (re.compile(r"^(language_model\.layers\.\d+\.mlp)\.gate_proj\."), r"\1.w1."),
    (re.compile(r"^(language_model\.layers\.\d+\.mlp)\.up_proj\."), r"\1.w3."),
    (re.compile(r"^(language_model\.layers\.\d+\.mlp)\.down_proj\."), r"\1.w2."),
)


def canonical_name(stored: str) -> str:
    """Return our name of a tensor.

    Args:
        stored: the name in a weight file, ours or that of a foreign checkpoint.
    """
    for pattern, replacement in _ALIASES:
        stored = pattern.sub(replacement, stored)
    return stored


class WeightFiles(Mapping[str, StoredTensor]):
    """The tensors of some weight files by canonical name.

    A file is opened when one of its tensors is first used. With an index, unused files may be missing.
    """

    def __init__(self, paths: Mapping[str, Path], index: Mapping[str, str] | None) -> None:
        """Open the files.

        Args:
            paths: the files by name.
            index: file names by stored tensor name. None without an index.
        """
        self._paths = dict(paths)
        self._shards: dict[str, Mapping[str, StoredTensor]] = {}
        found = index.items() if index else [(stored, file) for file in paths for stored in self._open(file)]
        self._places = _by_canonical_name(found)

    def __getitem__(self, name: str) -> StoredTensor:
        file, stored = self._places[name]
        shard = self._open(file)
        if stored not in shard:
            raise FailedPrecondition(
                f"The file {file} lacks the tensor {stored} that the index places there.", reason="MISSING_TENSORS"
            )
        return shard[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor."""
        return self._places[name][0]

    def paths(self) -> dict[str, Path]:
        """Return the weight files by name. Some may be missing."""
        return dict(self._paths)

    def num_bytes(self) -> int:
        """Return the size of all weight files on disk, bytes."""
        return sum(path.stat().st_size for path in self._paths.values())

    def unindexed(self) -> list[str]:
        """Return canonical names in open files that the index lacks."""
        held = (canonical_name(stored) for shard in self._shards.values() for stored in shard)
        return sorted(name for name in held if name not in self._places and name != _IGNORED)

    def _open(self, file: str) -> Mapping[str, StoredTensor]:
        if file not in self._shards:
            self._shards[file] = _read_file(self._paths[file])
        return self._shards[file]


def open_folder(folder: Path) -> WeightFiles:
    """Open the weight files of a folder.

    Safetensors files win over `.bin` files, because reading them cannot run code.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, there are no weights, or a file or the index cannot be read. NOT_INSTALLED,
            there are only `.bin` files and no torch.
    """
    for suffix in SUFFIXES:
        indexes = sorted(folder.glob(f"*{suffix}.index.json"))
        if len(indexes) > 1:
            raise _bad(f"Folder {folder.name} has several indexes: {', '.join(path.name for path in indexes)}.")
        if indexes:
            index = _read_index(indexes[0])
            return WeightFiles({file: folder / file for file in sorted(set(index.values()))}, index)
        files = sorted(folder.glob(f"*{suffix}"))
        if files:
            return open_files(files)
    raise _bad(f"Folder {folder.name} has no weights: no *.safetensors and no *.bin.")


def open_files(paths: Iterable[Path]) -> WeightFiles:
    """Open weight files without an index.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, a file cannot be read, or two have the same name or tensor. NOT_INSTALLED,
            a `.bin` file and no torch.
    """
    by_name: dict[str, Path] = {}
    for path in paths:
        if path.name in by_name:
            raise _bad(f"Two files are called {path.name}.")
        by_name[path.name] = path
    return WeightFiles(by_name, None)


def _by_canonical_name(found: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    places: dict[str, tuple[str, str]] = {}
    for stored, file in found:
        name = canonical_name(stored)
        if name == _IGNORED:
            log.info("static position table ignored: %s of %s", stored, file)
        elif name in places:
            raise _bad(f"Tensor {stored} of {file} and {places[name][1]} of {places[name][0]} are the same one.")
        else:
            places[name] = (file, stored)
    return places


def _read_index(path: Path) -> dict[str, str]:
    try:
        index = json.loads(path.read_bytes())["weight_map"]
        files = set(index.values())
        if not files or not all(isinstance(file, str) and is_plain_name(file) for file in files):
            raise _bad(f"The index {path.name} names files that are not beside it.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _bad(f"The file {path.name} is not an index of weight files.") from error
    return dict(index)


def _read_file(path: Path) -> Mapping[str, StoredTensor]:
    """Return every tensor of one file."""
    read = read_safetensors if path.suffix == ".safetensors" else _bin_reader(path)
    try:
        tensors = read(path)
    except FileNotFoundError as error:
        raise _bad(f"The file {path.name} is missing.") from error
    except Exception as error:  # readers raise any exception on damaged data
        raise _bad(
            f"The file {path.name} cannot be read: it is cut short, damaged or holds more than plain tensors."
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in ELEMENT_BYTES:
            raise _bad(f"Tensor {name} of {path.name} is {tensor.dtype}, not one of {', '.join(ELEMENT_BYTES)}.")
    return tensors


def _bin_reader(path: Path) -> Callable[[Path], Mapping[str, StoredTensor]]:
    """Return the reader of torch `.bin` files.

    Raises:
        FailedPrecondition: NOT_INSTALLED, there is no torch.
    """
    try:
        from checkpoint.torch_tensors import read_bin
    except ImportError:
        raise FailedPrecondition(
            f"Reading {path.name} needs torch: pip install 'tandem-serving[stages]'.", reason="NOT_INSTALLED"
        ) from None
    return read_bin


def _bad(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_CHECKPOINT")
