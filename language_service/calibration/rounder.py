"""Round layer after layer, with the inputs that prompts give them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from checkpoint.families import LanguageConfig
from checkpoint.quantizing import RoundedMatrix, matrices
from checkpoint.rounding import Grid, Inputs, by_error, relative_error
from checkpoint.stored_tensor import StoredTensor
from language_service.calibration.prompts import Prompt, embed
from language_service.model import DecoderLayer, causal_attend

# The module whose inputs each module shares.
_SHARED = {
    "self_attn.q_proj": "self_attn.q_proj",
    "self_attn.k_proj": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.q_proj",
    "self_attn.o_proj": "self_attn.o_proj",
    "mlp.w1": "mlp.w1",
    "mlp.w3": "mlp.w1",
    "mlp.w2": "mlp.w2",
}


class CalibratedRounder:
    """Implements `Rounder` with the inputs of prompts.

    A layer gets the outputs of the rounded layers before it, so it also takes back some of their errors.
    """

    def __init__(
        self, config: LanguageConfig, tensors: Mapping[str, StoredTensor], grid: Grid, prompts: Sequence[Prompt]
    ) -> None:
        """Embed the prompts.

        Args:
            config: of the decoder.
            tensors: of the checkpoint.
            grid: the values that weights are rounded to. A group of 0 is a whole row.
            prompts: at least one.
        """
        self._config, self._grid = config, grid
        self._states = list(embed(config, tensors, prompts))

    @torch.inference_mode()
    def round_layer(self, index: int, tensors: Mapping[str, Tensor]) -> dict[str, RoundedMatrix]:
        """Return the layer's matrices by module."""
        with torch.device("meta"):
            layer = DecoderLayer(self._config)
        layer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        inputs = self._inputs(layer, index)
        rounded = {
            module: self._round(matrix_NK, inputs[_SHARED[module]]) for module, matrix_NK in matrices(tensors).items()
        }
        layer.load_state_dict(
            {f"{name}.weight": one.weight.dequantize() for name, one in rounded.items()}, strict=False
        )
        for state in self._states:
            state.hidden_TD = layer(state.hidden_TD, state.angles, index, causal_attend(1, len(state.hidden_TD)))
            if index < self._config.num_deepstack_levels:
                for image in state.images:
                    image.add_level(index, state.hidden_TD)
        return rounded

    def _inputs(self, layer: DecoderLayer, index: int) -> dict[str, Inputs]:
        """Return the inputs of the layer's matrices, see `_SHARED`."""
        inputs: dict[str, Inputs] = {}
        for name in dict.fromkeys(_SHARED.values()):
            module = layer.get_submodule(name)
            found = inputs[name] = Inputs(layer.get_parameter(f"{name}.weight").shape[1])

            def add(_module: object, arguments: tuple[Any, ...], found: Inputs = found) -> None:
                found.add(arguments[0])

            module.register_forward_pre_hook(add)
        for state in self._states:
            layer(state.hidden_TD, state.angles, index, causal_attend(1, len(state.hidden_TD)))
        for name in inputs:
            layer.get_submodule(name)._forward_pre_hooks.clear()
        return inputs

    def _round(self, matrix_NK: Tensor, inputs: Inputs) -> RoundedMatrix:
        grid = self._grid if self._grid.group else Grid(self._grid.scheme, matrix_NK.shape[1])
        weight = by_error(matrix_NK, grid, inputs)
        return RoundedMatrix(weight, relative_error(matrix_NK, weight, inputs))
