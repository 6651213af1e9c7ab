"""Random weights for a new checkpoint: seeded by tensor name, made one at a time."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Unpack

import torch
from torch import Tensor

from checkpoint.config import ModelConfig
from checkpoint.layout import TensorSpec, layout
from checkpoint.manifest import Manifest
from checkpoint.saving import FileOptions, save
from checkpoint.store import ModelStore
from checkpoint.tokenizer import byte_tokenizer

_STD = 0.02
_TO_DECODER = ("perceiver_resampler.proj.weight", "vision_projection.weight")


class RandomTensors(Mapping[str, Tensor]):
    """The tensors of a new model; each is made when asked for and is the same every time for the same seed.

    A tensor's values follow from the seed and its own name alone, so neither order nor sharding changes them.
    """

    def __init__(self, config: ModelConfig, *, seed: int, dtype: torch.dtype) -> None:
        self._config = config
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
            return _STD / math.sqrt(spec.shape[1])  # normed inputs: visual tokens come out as large as text embeddings
        if spec.kind == "output":
            return _STD / math.sqrt(2 * self._num_layers(spec.name))  # two sums a layer keep the stream's size
        return _STD

    def _num_layers(self, name: str) -> int:
        if name.startswith("vision_tower."):
            return self._config.vision.num_layers
        if name.startswith("perceiver_resampler."):
            return self._config.resampler.num_layers
        return self._config.language.num_layers


def create_checkpoint(
    root: Path,
    tag: str,
    config: ModelConfig,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    **files: Unpack[FileOptions],
) -> Manifest:
    """Put a checkpoint with random weights and a byte tokenizer into the model store at `root`.

    `files` says how the weights are written, see `FileOptions`.

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
