"""Read safetensors files without torch.

The safetensors library opens a file for a framework only. Its smallest one, numpy, is 45 MB and has no bfloat16. The
format is simple: 8 bytes of header length (little-endian), a JSON header, then the elements of all tensors.
"""

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, TypeAdapter

from checkpoint.stored_tensor import ELEMENT_BYTES

_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 16 * 2**20  # of 100,000 tensors. Parsed, a header takes about ten times as much
_DTYPES = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    # Known by name for error messages only:
    "F64": "float64",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}

_Count = Annotated[int, Field(ge=0, strict=True)]


class _Entry(BaseModel):
    """One tensor of the header."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, _Count]  # bytes, from the end of the header


_HEADER = TypeAdapter(dict[str, Any])
_ENTRIES = TypeAdapter(dict[str, _Entry])


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A `StoredTensor` in a mapped file."""

    dtype: str
    shape: tuple[int, ...]
    file: mmap.mmap
    start: int  # bytes from the start of the file
    stop: int

    def elements(self) -> memoryview:
        """Return the elements as bytes, without a copy."""
        return memoryview(self.file)[self.start : self.stop]

    def drop_pages(self) -> None:
        """Free the memory that reading the elements took."""
        first = -(-self.start // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages: neighbours share the others
        length = self.stop // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):  # Linux
            self.file.madvise(mmap.MADV_DONTNEED, first, length)


def read_safetensors(path: Path) -> dict[str, MappedTensor]:
    """Map a file and return its tensors by name.

    Types are not restricted here, and the sizes of unknown types are not checked.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a safetensors file, or not all of it.
    """
    with path.open("rb") as file:
        # A private writable mapping, because torch takes no read-only memory. Nothing writes to it.
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    start = _LENGTH_BYTES + int.from_bytes(mapped[:_LENGTH_BYTES], "little")
    if not _LENGTH_BYTES < start <= min(len(mapped), _LENGTH_BYTES + _MAX_HEADER_BYTES):
        raise ValueError("the header is longer than the file")
    header = _HEADER.validate_json(mapped[_LENGTH_BYTES:start])
    header.pop("__metadata__", None)
    entries = _ENTRIES.validate_python(header)
    _check_offsets(entries, len(mapped) - start)
    return {
        name: MappedTensor(
            _DTYPES.get(entry.dtype, entry.dtype),
            entry.shape,
            mapped,
            start + entry.data_offsets[0],
            start + entry.data_offsets[1],
        )
        for name, entry in entries.items()
    }


def _check_offsets(entries: Mapping[str, _Entry], num_bytes: int) -> None:
    """Raise ValueError if the tensors leave gaps or overlap."""
    position = 0
    for entry in sorted(entries.values(), key=lambda entry: entry.data_offsets):
        start, stop = entry.data_offsets
        element_bytes = ELEMENT_BYTES.get(_DTYPES.get(entry.dtype, ""))
        if start != position or stop < start:
            raise ValueError("tensors overlap or leave gaps")
        if element_bytes is not None and stop - start != prod(entry.shape) * element_bytes:
            raise ValueError("a tensor has another size than its shape")
        position = stop
    if position != num_bytes:
        raise ValueError("the tensors do not fill the file")
