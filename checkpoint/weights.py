"""Load one half of a checkpoint, verified against its manifest."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.available_memory import available_bytes
from checkpoint.checks import check_weights
from checkpoint.compressed_tensors import check_low_bit
from checkpoint.families import Half, ModelConfig, TensorSpec
from checkpoint.identity import TensorDigest, half_digest
from checkpoint.manifest import TOKENIZER_FILE, Manifest, read_manifest, read_verified, read_verified_config
from checkpoint.stored_tensor import ELEMENT_BYTES, tensor_digest
from checkpoint.torch_tensors import TorchTensor, as_torch
from checkpoint.weight_files import open_folder

_READERS = 4  # threads that read and hash one tensor each, outside the interpreter's lock


@dataclass(frozen=True, slots=True)
class LoadedHalf:
    """One half of a checkpoint in memory, verified."""

    config: ModelConfig
    tensors: dict[str, Tensor]  # by canonical name, in memory of their own
    digest: bytes  # of the half, 32 bytes
    manifest: Manifest


def load_half(folder: Path, half: Half, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> LoadedHalf:
    """Read one half of a checkpoint.

    The weights of the other half are not read. Takes the memory of the half in `dtype` and of a few more tensors. The
    hash covers the returned copy, so a later change of the file cannot change the weights that are served. Matrices
    with 8 or 4 bits a weight stay as they are stored, see `take_weight`.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, a file is missing, cut short or not valid. WRONG_HALF, the checkpoint holds
            only the other half. MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE, BAD_LOW_BIT,
            with the names. NO_MEMORY, the half does not fit into the memory that is available.
        DataLoss: DIGEST_MISMATCH, a file or the half differs from the manifest.
    """
    manifest = read_manifest(folder)
    config = read_verified_config(folder, manifest)
    if half == "language":
        read_verified(folder, manifest, TOKENIZER_FILE)
    files = open_folder(folder)
    specs = check_weights(files, config, [half], folder.name)
    _check_memory(f"The {half} half of {folder.name}", specs, dtype, torch.device(device))

    def read(spec: TensorSpec) -> tuple[Tensor, TensorDigest]:
        stored = files[spec.name]
        tensor = as_torch(stored).clone(memory_format=torch.contiguous_format)
        stored.drop_pages()
        return tensor.to(device=device, dtype=_dtype(spec, tensor, dtype)), tensor_digest(TorchTensor(tensor))

    tensors: dict[str, Tensor] = {}
    digests: dict[str, TensorDigest] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for spec, (tensor, digest) in zip(specs, pool.map(read, specs), strict=True):
            tensors[spec.name], digests[spec.name] = tensor, digest
    found = half_digest(config, half, digests)
    if found != manifest.half_digest(half):
        raise DataLoss(
            f"The {half} half of {folder.name} is not the one its manifest names: weights or configuration changed.",
            reason="DIGEST_MISMATCH",
        )
    check_low_bit(tensors, specs, folder.name)
    return LoadedHalf(config, tensors, found, manifest)


def _dtype(spec: TensorSpec, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Return the type of a tensor in memory."""
    if spec.dtype is not None:
        return tensor.dtype
    # Scales are never rounded: the values were made for them.
    return dtype if spec.kind != "low_bit" or tensor.dtype == dtype else torch.float32


def _check_memory(subject: str, specs: Sequence[TensorSpec], dtype: torch.dtype, device: torch.device) -> None:
    """Check that the weights fit.

    Otherwise the system would kill the process in the middle of the load, without a reason in its log.
    """
    needed = sum(spec.num_elements * (ELEMENT_BYTES[spec.dtype] if spec.dtype else dtype.itemsize) for spec in specs)
    available = available_bytes(device)
    if needed > available:
        raise FailedPrecondition(
            f"{subject} takes {needed / 2**20:.0f} MiB, and {available / 2**20:.0f} MiB are available: raise the "
            "memory limit.",
            reason="NO_MEMORY",
        )
