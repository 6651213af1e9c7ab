"""Compute the decoder's layers operation by operation."""

from collections.abc import Sequence

from torch import Tensor

from checkpoint.families import LanguageConfig
from language_service.kernels.interface import Angles, Kernels, Layer
from language_service.model import Attend, ImageRows

# Letters as in `interface`, and R rows wanted, G key-value heads, X = (H + 2 G) E


class LayerByLayer:
    """Implements `Layers` with any kernels."""

    def __init__(self, kernels: Kernels, config: LanguageConfig, layers: Sequence[Layer]) -> None:
        self._kernels, self._config, self._layers = kernels, config, layers

    def __call__(
        self, hidden_TD: Tensor, angles: Angles, attend: Attend, rows_R: Tensor, images: Sequence[ImageRows] = ()
    ) -> Tensor:
        """Return the last layer's outputs [R, D]."""
        eps, kernels = self._config.norm_eps, self._kernels
        for index, layer in enumerate(self._layers):
            qkv_TX = layer.qkv(kernels.rms_norm(hidden_TD, layer.attention_norm, eps))
            attended = self._attended(index, layer, qkv_TX, angles, attend).flatten(1)
            if index == self._config.num_layers - 1 and len(rows_R) < len(hidden_TD):
                attended, hidden_TD = attended[rows_R], hidden_TD[rows_R]
            hidden_TD = layer.out(attended, hidden_TD)
            gate_up = layer.gate_up(kernels.rms_norm(hidden_TD, layer.mlp_norm, eps))
            hidden_TD = layer.down(kernels.swiglu(gate_up), hidden_TD)
            if index < self._config.num_deepstack_levels:
                for image in images:
                    image.add_level(index, hidden_TD)
        return hidden_TD

    def _attended(self, index: int, layer: Layer, qkv_TX: Tensor, angles: Angles, attend: Attend) -> Tensor:
        """Return attention [T, H, E] of one layer."""
        q_THE, k_TGE, v_TGE = self._heads(qkv_TX)
        q_THE = self._kernels.rotate_heads(q_THE, layer.q_norm, self._config.norm_eps, *angles)
        k_TGE = self._kernels.rotate_heads(k_TGE, layer.k_norm, self._config.norm_eps, *angles)
        return attend(index, q_THE, k_TGE, v_TGE)

    def _heads(self, qkv_TX: Tensor) -> Sequence[Tensor]:
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        return qkv_TX.view(len(qkv_TX), -1, self._config.head_dim).split_with_sizes([heads, kv_heads, kv_heads], dim=1)
