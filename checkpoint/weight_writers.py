"""Write weight files tensor by tensor.

Writing safetensors takes the memory of one tensor, writing torch `.bin` that of one shard.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from chassis.errors import InvalidArgument
from checkpoint.families import TensorSpec
from checkpoint.torch_tensors import TorchTensor

Container = Literal["safetensors", "bin"]

_SAFETENSORS_DTYPES = {
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float32: "F32",
    torch.int8: "I8",
    torch.int32: "I32",
    torch.int64: "I64",
}
_HEADER_ALIGNMENT = 8  # bytes, so that the elements of a mapped file are aligned


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor that will be written, with its type."""

    spec: TensorSpec
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return self.spec.num_elements * self.dtype.itemsize


def write_weights(
    folder: Path,
    tag: str,
    tensors: Sequence[PlannedTensor],
    take: Callable[[PlannedTensor], Tensor],
    *,
    shards: int = 1,
    container: Container = "safetensors",
) -> None:
    """Write all weight files, and an index for several shards.

    Args:
        folder: of the checkpoint.
        tag: the checkpoint's tag, which names a single safetensors file.
        tensors: the tensors to write, in order.
        take: returns a tensor, contiguous in CPU memory. Called once per tensor, in order.
        shards: number of files, of about equal size.
        container: kind of file.

    Raises:
        InvalidArgument: BAD_SHARDS, there are fewer tensors than files, or no files.
    """
    plan = _split(tensors, shards)
    write = _write_safetensors if container == "safetensors" else _write_torch
    stem = "model" if container == "safetensors" else "pytorch_model"
    if shards == 1:
        write(folder / (f"{tag}.safetensors" if container == "safetensors" else "pytorch_model.bin"), plan[0], take)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(plan, start=1):
        name = f"{stem}-{number:05d}-of-{shards:05d}.{container}"
        write(folder / name, shard, take)
        places |= {stored.spec.name: name for stored in shard}
    index = {"metadata": {"total_size": sum(stored.num_bytes for stored in tensors)}, "weight_map": places}
    (folder / f"{stem}.{container}.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _split(tensors: Sequence[PlannedTensor], shards: int) -> list[list[PlannedTensor]]:
    """Split tensors into non-empty parts of about equal size."""
    if not 1 <= shards <= len(tensors):
        raise InvalidArgument(
            f"The number of shards must be between 1 and {len(tensors)}, the tensors of the model, not {shards}.",
            reason="BAD_SHARDS",
        )
    plan: list[list[PlannedTensor]] = [[]]
    bytes_left = sum(stored.num_bytes for stored in tensors)
    bytes_here, bytes_aim = 0, math.ceil(bytes_left / shards)
    for place, stored in enumerate(tensors):
        files_left, tensors_left = shards - len(plan), len(tensors) - place
        full = bytes_here + stored.num_bytes / 2 > bytes_aim or tensors_left == files_left
        if plan[-1] and full and files_left:
            bytes_left -= bytes_here
            plan.append([])
            bytes_here, bytes_aim = 0, math.ceil(bytes_left / files_left)
        plan[-1].append(stored)
        bytes_here += stored.num_bytes
    return plan


def _write_safetensors(path: Path, shard: Sequence[PlannedTensor], take: Callable[[PlannedTensor], Tensor]) -> None:
    # The library's writer needs all tensors of a file in memory. The format allows writing them one by one.
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for stored in shard:
        header[stored.spec.name] = {
            "dtype": _SAFETENSORS_DTYPES[stored.dtype],
            "shape": stored.spec.shape,
            "data_offsets": [offset, offset + stored.num_bytes],
        }
        offset += stored.num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _HEADER_ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for stored in shard:
            file.write(TorchTensor(take(stored)).elements())


def _write_torch(path: Path, shard: Sequence[PlannedTensor], take: Callable[[PlannedTensor], Tensor]) -> None:
    # Cloned, because torch.save writes the whole storage behind a view.
    torch.save({stored.spec.name: take(stored).clone() for stored in shard}, path)
