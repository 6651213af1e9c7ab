"""Weight files of a checkpoint folder: safetensors or torch `.bin`, one file or shards with an index.

Reading gives views of the mapped file, so a tensor costs nothing until its elements are touched.
"""

import ctypes
import json
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import structlog
import torch
from safetensors import safe_open
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.manifest import is_plain_name

log = structlog.get_logger(__name__)

_SUFFIXES = (".safetensors", ".bin")
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_IGNORED = "language_model.embed_positions.weight"  # a static table of positions, which are rotary here
_ALIASES = (
    # A text decoder released on its own (Llama, Qwen2, Qwen3) calls itself 'model'.
    (re.compile(r"^model\.(embed_tokens|layers|norm)\."), r"language_model.\1."),
    (re.compile(r"^(language_model\.layers\.\d+)\.attn\."), r"\1.self_attn."),
    (re.compile(r"^(language_model\.layers\.\d+\.mlp)\.gate_proj\."), r"\1.w1."),
    (re.compile(r"^(language_model\.layers\.\d+\.mlp)\.up_proj\."), r"\1.w3."),
    (re.compile(r"^(language_model\.layers\.\d+\.mlp)\.down_proj\."), r"\1.w2."),
)


def canonical_name(stored: str) -> str:
    """Return our name of a tensor that a foreign checkpoint calls `stored`; our own names stay as they are."""
    for pattern, replacement in _ALIASES:
        stored = pattern.sub(replacement, stored)
    return stored


class WeightFiles(Mapping[str, Tensor]):
    """The tensors of some weight files by canonical name, as views; a file is opened when first asked for.

    With an index, files whose tensors nobody asks for are never opened, so they may even be absent.
    """

    def __init__(self, paths: Mapping[str, Path], index: Mapping[str, str] | None) -> None:
        """Take the files by name and, for shards, the index from stored tensor name to file name."""
        self._paths = dict(paths)
        self._shards: dict[str, dict[str, Tensor]] = {}
        found = index.items() if index else [(stored, file) for file in paths for stored in self._open(file)]
        self._places = _by_canonical_name(found)

    def __getitem__(self, name: str) -> Tensor:
        file, stored = self._places[name]
        shard = self._open(file)
        if stored not in shard:
            raise FailedPrecondition(
                f"The file {file} lacks the tensor {stored} that the index puts there.", reason="MISSING_TENSORS"
            )
        return shard[stored]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def file_of(self, name: str) -> str:
        """Return the name of the file that holds a tensor."""
        return self._places[name][0]

    def num_bytes(self) -> int:
        """Return the bytes all weight files take on disk."""
        return sum(path.stat().st_size for path in self._paths.values())

    def unindexed(self) -> list[str]:
        """Return the tensors of the files opened so far that the index does not name, by canonical name."""
        held = (canonical_name(stored) for shard in self._shards.values() for stored in shard)
        return sorted(name for name in held if name not in self._places and name != _IGNORED)

    def _open(self, file: str) -> dict[str, Tensor]:
        if file not in self._shards:
            self._shards[file] = _read_file(self._paths[file])
        return self._shards[file]


def open_folder(folder: Path) -> WeightFiles:
    """Open the weight files of a folder; safetensors where there are both kinds, as their readers can run no code.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, there are none, or they or their index cannot be read.
    """
    for suffix in _SUFFIXES:
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
        FailedPrecondition: BAD_CHECKPOINT, one cannot be read, two have one name or hold the same tensor.
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
            log.info("ignored a table of positions: positions are rotary", tensor=stored, file=file)
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


def _read_file(path: Path) -> dict[str, Tensor]:
    """Return views of every tensor of one file."""
    try:
        tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    except FileNotFoundError as error:
        raise _bad(f"The file {path.name} is missing.") from error
    except Exception as error:  # readers raise whatever they like on damaged data
        raise _bad(
            f"The file {path.name} cannot be read: it is cut short, damaged or holds more than plain tensors."
        ) from error
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise _bad(f"Tensor {name} of {path.name} is {dtype_name(tensor.dtype)}, not bfloat16, float16 or float32.")
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)


def _read_torch(path: Path) -> dict[str, Tensor]:
    loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) and _is_plain(tensor) for name, tensor in loaded.items()
    ):
        raise ValueError("not a mapping of names to plain tensors")
    return {name: tensor.detach() for name, tensor in loaded.items()}  # a parameter would drag gradients along


def _is_plain(tensor: Tensor) -> bool:
    """Return whether the elements lie in memory as they are: neither sparse, nested, negated nor on another device."""
    in_memory = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return in_memory and not tensor.is_nested and not tensor.is_neg()


def dtype_name(dtype: torch.dtype) -> str:
    """Return a dtype as files and digests name it: 'bfloat16'."""
    return str(dtype).removeprefix("torch.")


def element_bytes(tensor: Tensor) -> memoryview:
    """Return the elements of a contiguous tensor in CPU memory as bytes, without a copy."""
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().data


def drop_pages(view: Tensor) -> None:
    """Give back the memory that reading `view` of a mapped file took; reading it again reads the file again.

    The kernel would keep the pages as long as the file is mapped, so that loading a model took its size twice.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):  # not Linux
        return
    if not view.is_contiguous():  # it may claim more bytes than it has: an expanded tensor repeats a few
        return
    first = -(-view.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages only: the rest may be a neighbour's
    length = (view.data_ptr() + view.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _bad(message: str) -> FailedPrecondition:
    return FailedPrecondition(message, reason="BAD_CHECKPOINT")
