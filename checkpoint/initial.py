"""Make new checkpoints with random weights."""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from checkpoint.families import ModelConfig, TensorSpec, layout
from checkpoint.manifest import Manifest
from checkpoint.saving import FileOptions, save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import byte_tokenizer

_STD = 0.02
_LAYER = re.compile(r"\.\d+\.")
_TO_DECODER = ("perceiver_resampler.proj.weight", "vision_projection.weight")


class RandomTensors(Mapping[str, Tensor]):
    """Random tensors of a new model, made on demand.

    The values of a tensor depend on the seed and its name only, so neither order nor sharding changes them.
    """

    def __init__(self, config: ModelConfig, *, seed: int, dtype: torch.dtype) -> None:
        self._specs = {spec.name: spec for spec in layout(config)}
        self._seed, self._dtype = seed, dtype

    def __getitem__(self, name: str) -> Tensor:
        spec = self._specs[name]
        if spec.kind == "scale":
            return torch.ones(spec.shape, dtype=self._dtype)
        if spec.kind == "bias":
            return torch.zeros(spec.shape, dtype=self._dtype)
        seed = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:8]
        generator = torch.Generator().manual_seed(int.from_bytes(seed, "little", signed=True))
        return torch.empty(spec.shape, dtype=self._dtype).normal_(0.0, self._std(spec), generator=generator)

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def _std(self, spec: TensorSpec) -> float:
        if spec.name in _TO_DECODER:
            return _STD / math.sqrt(spec.shape[1])  # visual tokens as large as text embeddings
        if spec.kind == "output":
            return _STD / math.sqrt(2 * self._num_layers(spec.name))  # each layer adds two to the residual
        return _STD

    def _num_layers(self, name: str) -> int:
        """Return the number of layers in a tensor's stack."""
        stack = _LAYER.split(name)[0]
        return len({match[0] for one in self._specs if one.startswith(stack) and (match := _LAYER.search(one))})


def create_checkpoint(
    root: Path,
    tag: str,
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    **files: Unpack[FileOptions],
) -> Manifest:
    """Make a checkpoint with random weights and a byte tokenizer.

    Args:
        root: the model store.
        tag: the new checkpoint's tag.
        config: of the model.
        seed: equal seeds give equal weights.
        dtype: stored type of every tensor.
        files: layout of the weight files, see `FileOptions`.

    Raises:
        InvalidArgument: BAD_TAG, BAD_SHARDS.
        FailedPrecondition: TAG_EXISTS.
    """
    with ModelStore(root).create(tag) as folder:
        return save(
            folder,
            config,
            RandomTensors(config, seed=seed, dtype=dtype),
            tag,
            tokenizer_json=byte_tokenizer().to_str(pretty=True),
            dtype=dtype,
            **files,
        )
