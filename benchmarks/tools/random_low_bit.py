"""Make checkpoints with few bits of random weights, quickly."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from checkpoint.families import Scheme
from checkpoint.manifest import read_manifest, read_verified_config
from checkpoint.quantizing import OnLayer, RoundedMatrix, matrices, plan, quantize
from checkpoint.rounding import Grid, to_nearest
from checkpoint.store import ModelStore


def quantize_random(
    models: Path, source: str, tag: str, scheme: Scheme, group: int, *, on_layer: OnLayer | None = None
) -> None:
    """Write a checkpoint with few bits into the store.

    Args:
        models: the model store.
        source: tag of the checkpoint with random weights.
        tag: of the new checkpoint.
        scheme: bits of weights and activations.
        group: inputs that share a scale, for 4 bits.
        on_layer: as in `quantize`, without errors.
    """
    folder = ModelStore(models).folder(source)
    config = plan(read_verified_config(folder, read_manifest(folder)), scheme, group)
    quantization = config.language.quantization
    assert quantization is not None
    rounder = _FastRounder(Grid(scheme, quantization.group or 0))
    quantize(folder, models, tag, config, rounder, on_layer=on_layer)


class _FastRounder:
    """Implements `Rounder` without a search for the best scales.

    Random weights have no quality to keep.
    """

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def round_layer(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, RoundedMatrix]:
        """Return the layer's matrices by module, without their errors."""
        return {
            module: RoundedMatrix(to_nearest(matrix_NK, self._grid_of(matrix_NK)), math.nan)
            for module, matrix_NK in matrices(tensors).items()
        }

    def _grid_of(self, matrix_NK: Tensor) -> Grid:
        return self._grid if self._grid.group else Grid(self._grid.scheme, matrix_NK.shape[1])
