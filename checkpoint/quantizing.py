"""Make a checkpoint with 8 or 4 bits a weight from another.

One layer is in memory at a time. The vision half, embeddings, norms and biases are copied as they are. The head gets 8
bits.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from chassis.errors import FailedPrecondition
from checkpoint.compressed_tensors import stored_tensors
from checkpoint.families import EMBEDDING, HEAD, LanguageConfig, ModelConfig, Quantization, Scheme, TensorSpec, layout
from checkpoint.lowbit import LowBitWeight, join
from checkpoint.manifest import (
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    Manifest,
    read_manifest,
    read_verified,
    read_verified_config,
)
from checkpoint.probes import PROBES_FILE
from checkpoint.release_probes import add_probes
from checkpoint.rounding import Grid, best_scales, relative_error, to_nearest
from checkpoint.saving import OnTensor, save
from checkpoint.store import ModelStore
from checkpoint.torch_tensors import as_torch
from checkpoint.verification import raise_for_problems, verify
from checkpoint.weight_files import WeightFiles, open_folder

_LAYER = "language_model.layers."
_ROWS = 16_384  # of the head that are rounded at a time
_GROUPS = (32, 128)


@dataclass(frozen=True, slots=True)
class RoundedMatrix:
    """A matrix with few bits."""

    weight: LowBitWeight
    error: float  # of its outputs, or without calibration of its weights, relative to their size


class Rounder(Protocol):
    """Rounds the matrices of one layer after the other."""

    def round_layer(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, RoundedMatrix]:
        """Return the layer's matrices by module, such as 'mlp.w1'.

        Args:
            index: number of the layer. Layers come in order.
            tensors: of the layer, by name without the layer's prefix.
        """
        ...


class NearestRounder:
    """Rounds each weight to the nearest value.

    Needs no calibration. The scales of 4-bit groups have the smallest squared error.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def round_layer(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, RoundedMatrix]:
        """Return the layer's matrices by module."""
        return {module: self._round(matrix_NK) for module, matrix_NK in matrices(tensors).items()}

    def _round(self, matrix_NK: Tensor) -> RoundedMatrix:
        grid = self._grid if self._grid.group else Grid(self._grid.scheme, matrix_NK.shape[1])
        weight = to_nearest(matrix_NK, grid, best_scales(matrix_NK, grid))
        return RoundedMatrix(weight, relative_error(matrix_NK, weight, None))


# Called for each layer and its matrices' errors by module. The head is the layer after the last.
OnLayer = Callable[[int, Mapping[str, float]], None]


def matrices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the matrices of a layer by module."""
    return {name.removesuffix(".weight"): tensor for name, tensor in tensors.items() if tensor.dim() == 2}


def plan(config: ModelConfig, scheme: Scheme, group: int) -> ModelConfig:
    """Return the configuration of the new checkpoint.

    Args:
        config: of the source.
        scheme: bits of weights and activations.
        group: inputs that share a scale, for 4 bits.

    Raises:
        FailedPrecondition: ALREADY_QUANTIZED. BAD_GROUP, the group divides not all matrices.
    """
    if config.language.quantization is not None:
        raise FailedPrecondition(
            f"The checkpoint has {config.language.quantization} already: quantize the one it was made from.",
            reason="ALREADY_QUANTIZED",
        )
    quantization = Quantization(scheme=scheme, group=None if scheme == "w8a8" else group, head=True)
    fields = {**config.language.model_dump(), "quantization": quantization, "tied_embeddings": False}
    try:
        return config.model_copy(update={"language": LanguageConfig.model_validate(fields)})
    except ValueError:
        language = config.language
        inputs = {language.width, language.num_heads * language.head_dim, language.mlp_width}
        others = [str(one) for one in _GROUPS if all(length % one == 0 for length in inputs)]
        remedy = f"choose {' or '.join(others)}" if others else "use w8a8"
        raise FailedPrecondition(
            f"Groups of {group} do not divide the inputs of this decoder's matrices, "
            f"{', '.join(map(str, sorted(inputs)))}: {remedy}.",
            reason="BAD_GROUP",
            field="group",
        ) from None


def quantize(
    source: Path,
    root: Path,
    tag: str,
    config: ModelConfig,
    rounder: Rounder,
    *,
    on_layer: OnLayer | None = None,
    on_tensor: OnTensor | None = None,
) -> Manifest:
    """Make a checkpoint with few bits a weight.

    Probes of the source are copied too.

    Args:
        source: folder of the checkpoint, verified here.
        root: the model store.
        tag: the new checkpoint's tag.
        config: of the new checkpoint, from `plan`.
        rounder: rounds the matrices.
        on_layer: called after each layer and the head.
        on_tensor: called for each written tensor.

    Raises:
        InvalidArgument: BAD_TAG.
        FailedPrecondition: TAG_EXISTS, BAD_CHECKPOINT and the errors of `check_weights`.
        DataLoss: DIGEST_MISMATCH, the source was changed.
    """
    manifest = read_manifest(source)
    before = read_verified_config(source, manifest)
    files = open_folder(source)
    raise_for_problems(source.name, verify(source))
    store = ModelStore(root)
    with store.create(tag) as folder:
        tensors = _QuantizedTensors(files, before, config, rounder, on_layer)
        made = save(
            folder,
            config,
            tensors,
            tag,
            tokenizer_json=read_verified(source, manifest, TOKENIZER_FILE).decode(),
            chat_template=read_verified(source, manifest, TEMPLATE_FILE).decode(),
            vision_digest=manifest.language.vision_digest,
            dtype=tensors.dtype,
            on_tensor=on_tensor,
        )
    if PROBES_FILE in manifest.files:
        add_probes(store.folder(tag), source / PROBES_FILE)
    return made


class _QuantizedTensors(Mapping[str, Tensor]):
    """The tensors of the new checkpoint, made on demand.

    Those of a layer are made together, and each is given once.
    """

    def __init__(
        self,
        files: WeightFiles,
        before: ModelConfig,
        config: ModelConfig,
        rounder: Rounder,
        on_layer: OnLayer | None,
    ) -> None:
        self._files, self._rounder, self._on_layer = files, rounder, on_layer
        self._specs = {spec.name: spec for spec in layout(config)}
        self._head = EMBEDDING if before.language.tied_embeddings else HEAD
        self._num_layers = before.language.num_layers
        self._layers: dict[int, list[str]] = {}  # names in the source
        for spec in layout(before):
            if spec.name.startswith(_LAYER):
                self._layers.setdefault(int(spec.name.split(".")[2]), []).append(spec.name)
        self._ready: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._ready:
            if name.startswith("lm_head."):
                self._make_head()
            elif name.startswith(_LAYER):
                self._make_layer(int(name.split(".")[2]))
            else:
                return as_torch(self._files[name])
        return self._ready.pop(name)

    def __contains__(self, name: object) -> bool:
        return name in self._specs

    def __iter__(self) -> Iterator[str]:
        return iter(self._specs)

    def __len__(self) -> int:
        return len(self._specs)

    def dtype(self, spec: TensorSpec) -> torch.dtype:
        """Return the stored type of a float tensor: the source's."""
        if spec.kind == "low_bit":
            return torch.bfloat16
        stored: torch.dtype = getattr(torch, self._files[spec.name].dtype)
        return stored

    def _make_layer(self, index: int) -> None:
        prefix = f"{_LAYER}{index}."
        tensors = {name.removeprefix(prefix): as_torch(self._files[name]) for name in self._layers[index]}
        rounded = self._rounder.round_layer(index, tensors)
        self._ready = {prefix + name: tensor for name, tensor in tensors.items()}
        for module, matrix in rounded.items():
            del self._ready[f"{prefix}{module}.weight"]
            self._ready |= stored_tensors(prefix + module, matrix.weight)
        for name in self._layers[index]:
            self._files[name].drop_pages()
        self._report(index, {module: matrix.error for module, matrix in rounded.items()})

    def _make_head(self) -> None:
        matrix_VD = as_torch(self._files[self._head])
        grid = Grid("w8a8", matrix_VD.shape[1])
        parts, errors = [], []
        for start in range(0, len(matrix_VD), _ROWS):
            rows = matrix_VD[start : start + _ROWS]
            parts.append(to_nearest(rows, grid, best_scales(rows, grid)))
            errors.append(relative_error(rows, parts[-1], None))
        self._ready = stored_tensors("lm_head", join(parts))
        self._report(self._num_layers, {"lm_head": max(errors)})

    def _report(self, layer: int, errors: Mapping[str, float]) -> None:
        if self._on_layer:
            self._on_layer(layer, errors)
