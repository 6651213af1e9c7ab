"""Weights in memory: load one half of a checkpoint, checked against its layout and its manifest."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from chassis.errors import DataLoss, FailedPrecondition
from checkpoint.config import ModelConfig
from checkpoint.identity import TensorDigest, half_digest
from checkpoint.layout import EMBEDDING, HEAD, Half, TensorSpec, half_of, layout
from checkpoint.manifest import TOKENIZER_FILE, Manifest, read_manifest, read_verified, read_verified_config
from checkpoint.weight_files import WeightFiles, drop_pages, dtype_name, element_bytes, open_folder

_NAMES_SHOWN = 5
_READERS = 4  # threads that read and hash, one tensor each; both run outside of the interpreter's lock


@dataclass(frozen=True, slots=True)
class LoadedHalf:
    """One half of a checkpoint in memory, verified."""

    config: ModelConfig
    tensors: dict[str, Tensor]  # by canonical name; own memory, not the file's
    digest: bytes  # of the half, 32 bytes
    manifest: Manifest


def load_half(folder: Path, half: Half, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> LoadedHalf:
    """Read one half of a checkpoint, and nothing of the other half's weights.

    Takes the memory of the half in `dtype` and of a few tensors more. What is hashed is the copy that is returned, so
    what was verified is what is served, even if the file changes later.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, a file is missing, cut short or not valid; WRONG_HALF, the checkpoint holds
            only the other half; MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE, with the names.
        DataLoss: DIGEST_MISMATCH, a file or the half is not what the manifest says.
    """
    manifest = read_manifest(folder)
    config = read_verified_config(folder, manifest)
    if half == "language":
        read_verified(folder, manifest, TOKENIZER_FILE)
    files = open_folder(folder)
    specs = check_weights(files, config, [half], folder.name)

    def read(spec: TensorSpec) -> tuple[Tensor, TensorDigest]:
        view = files[spec.name]
        stored = view.clone(memory_format=torch.contiguous_format)
        drop_pages(view)
        return stored.to(device=device, dtype=dtype), tensor_digest(stored)

    tensors: dict[str, Tensor] = {}
    digests: dict[str, TensorDigest] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for spec, (tensor, found) in zip(specs, pool.map(read, specs), strict=True):
            tensors[spec.name], digests[spec.name] = tensor, found
    digest = half_digest(config, half, digests)
    if digest != manifest.half_digest(half):
        raise DataLoss(
            f"The {half} half of {folder.name} is not the one its manifest names: weights or configuration changed.",
            reason="DIGEST_MISMATCH",
        )
    return LoadedHalf(config, tensors, digest, manifest)


def check_weights(files: WeightFiles, config: ModelConfig, halves: Sequence[Half], source: str) -> list[TensorSpec]:
    """Check that weight files hold some halves of a model, by names and shapes; return what they must hold.

    Only files with tensors of these halves are opened. Elements are read only to compare a separate head of a tied
    model with the embedding.

    Raises:
        FailedPrecondition: BAD_CHECKPOINT, WRONG_HALF, MISSING_TENSORS, UNEXPECTED_TENSORS, WRONG_SHAPE; `source`
            names the checkpoint in the text.
    """
    specs = check_names(files, config, halves, source)
    check_shapes(files, specs, source)
    check_names([*files, *files.unindexed()], config, halves, source)  # which are known now that files are open
    if "language" in halves:
        check_tied_head(files, config, source)
    return specs


def check_names(names: Iterable[str], config: ModelConfig, halves: Sequence[Half], source: str) -> list[TensorSpec]:
    """Check that the tensors of some halves are all there, and none that belongs to no half; return what must be there.

    A separate head passes in a tied model: `check_tied_head` looks at its elements.

    Raises:
        FailedPrecondition: WRONG_HALF, MISSING_TENSORS, UNEXPECTED_TENSORS; `source` names the checkpoint in the text.
    """
    everything, held = layout(config), set(names)
    expected = [spec for spec in everything if spec.half in halves]
    missing = [spec.name for spec in expected if spec.name not in held]
    if len(missing) == len(expected) and any(half_of(name) for name in held):
        raise FailedPrecondition(
            f"Checkpoint {source} holds no tensor of the {' and '.join(halves)} half.", reason="WRONG_HALF"
        )
    if missing:
        raise _named(f"Checkpoint {source} lacks", missing, "MISSING_TENSORS")
    unexpected = sorted(held - {spec.name for spec in everything} - {HEAD})
    if unexpected:
        raise _named(
            f"Checkpoint {source} has tensors that its configuration does not ask for:",
            unexpected,
            "UNEXPECTED_TENSORS",
        )
    return expected


def check_shapes(tensors: Mapping[str, Tensor], specs: Iterable[TensorSpec], source: str) -> None:
    """Check shapes against a layout.

    Raises:
        FailedPrecondition: WRONG_SHAPE, with the names and both shapes.
    """
    wrong = [
        f"{spec.name} is {list(tensors[spec.name].shape)}, not {list(spec.shape)}"
        for spec in specs
        if tuple(tensors[spec.name].shape) != spec.shape
    ]
    if wrong:
        raise _named(
            f"Checkpoint {source} has tensors of another shape than its configuration asks for:", wrong, "WRONG_SHAPE"
        )


def check_tied_head(tensors: Mapping[str, Tensor], config: ModelConfig, source: str) -> None:
    """Check that a separate head, where a tied model brings one along, is the embedding.

    Raises:
        FailedPrecondition: UNEXPECTED_TENSORS, it is another matrix.
    """
    if not config.language.tied_embeddings or HEAD not in tensors:
        return
    head, embedding = tensors[HEAD], tensors[EMBEDDING]
    if head.dtype != embedding.dtype or not torch.equal(head, embedding):
        raise FailedPrecondition(
            f"Tensor {HEAD} of {source} differs from {EMBEDDING}, but its configuration ties them.",
            reason="UNEXPECTED_TENSORS",
        )


def tensor_digest(tensor: Tensor) -> TensorDigest:
    """Return what a half's digest takes from a contiguous tensor in CPU memory."""
    sha256 = hashlib.sha256(element_bytes(tensor)).digest()
    return TensorDigest(dtype_name(tensor.dtype), tuple(tensor.shape), sha256)


def _named(what: str, names: Sequence[str], reason: str) -> FailedPrecondition:
    more = len(names) - _NAMES_SHOWN
    shown = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return FailedPrecondition(f"{what} {shown}.", reason=reason)
