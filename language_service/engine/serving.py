"""The decoder as the engine runs it: the same numbers from weights joined and ordered for the processor."""

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor

from checkpoint.config import LanguageConfig
from language_service.kernels import (
    Head,
    Kernels,
    Layer,
    NativeKernels,
    OneDnnKernels,
    PlainKernels,
    Projection,
    TileKernels,
    fits,
)
from language_service.model import Attend, Rotary

# T tokens of the batch, R of them wanted, D model dim, V vocabulary

_TEXT, _IMAGE = 0, 1  # rows of the modality embedding


class ServingDecoder:
    """`Decoder` without gradients, and with less to do a step.

    Projections of one input are one, weights lie in the order the kernels read them, and what only some tokens need is
    computed for those alone.
    """

    def __init__(
        self, config: LanguageConfig, tensors: MutableMapping[str, Tensor], kernels: Kernels | None = None
    ) -> None:
        """Take over a checkpoint's tensors by name; `tensors` is empty afterwards, so that they need memory once.

        Without `kernels`, the fastest there are for the tensors' type and device.
        """
        self.config = config
        self.num_parameters = sum(tensor.numel() for tensor in tensors.values())
        self.num_weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self.rotary = Rotary(config)
        embedding_VD = tensors.pop("language_model.embed_tokens.weight")
        self._dtype = embedding_VD.dtype
        self.kernels = kernels or choose_kernels(config, embedding_VD.dtype, embedding_VD.device)
        self._modality_2D = tensors.pop("language_model.modality_embedding.weight", None)
        self._norm_D = tensors.pop("language_model.norm.weight")
        layers = [self._take_layer(tensors, f"language_model.layers.{n}.") for n in range(config.num_layers)]
        self._layers = self.kernels.layers(config, layers)
        self._head: Head = self.kernels.head(tensors.pop("lm_head.weight", embedding_VD))
        self._embedding: Head = self._head if config.tied_embeddings else PlainKernels(self._dtype).head(embedding_VD)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return embeddings of text [..., D] for integer `token_ids` of any shape."""
        return self._mark(self._embedding.embed(token_ids), _TEXT)

    def embed_visual(self, visual_tokens: Tensor) -> Tensor:
        """Return embeddings of an image [..., D] for `visual_tokens` [..., D] of the vision half."""
        return self._mark(visual_tokens.to(self._dtype), _IMAGE)

    def forward(self, embeddings_TD: Tensor, positions_T: Tensor, attend: Attend, rows_R: Tensor) -> Tensor:
        """Return logits [R, V] of the token after each of `rows_R` of the batch, which ascend."""
        angles = self.rotary.angles(positions_T, self.kernels.angle_dtype)
        last_RD = self._layers(embeddings_TD, angles, attend, rows_R)
        return self._head.logits(self.kernels.rms_norm(last_RD, self._norm_D, self.config.norm_eps))

    def _take_layer(self, tensors: MutableMapping[str, Tensor], prefix: str) -> Layer:
        def take(name: str) -> Tensor | None:
            return tensors.pop(prefix + name, None)

        def joined(names: Sequence[str], kind: str) -> Tensor | None:
            parts = [part for name in names if (part := take(f"{name}.{kind}")) is not None]
            return torch.cat(parts) if len(parts) > 1 else next(iter(parts), None)

        def project(*names: str) -> Projection:
            weight_NK = joined(names, "weight")
            assert weight_NK is not None
            return self.kernels.project(weight_NK, joined(names, "bias"))

        return Layer(
            attention_norm=tensors.pop(prefix + "input_layernorm.weight"),
            qkv=project("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            q_norm=take("self_attn.q_norm.weight"),
            k_norm=take("self_attn.k_norm.weight"),
            out=project("self_attn.o_proj"),
            mlp_norm=tensors.pop(prefix + "post_attention_layernorm.weight"),
            gate_up=project("mlp.w1", "mlp.w3"),
            down=project("mlp.w2"),
        )

    def _mark(self, embeddings: Tensor, modality: int) -> Tensor:
        return embeddings if self._modality_2D is None else embeddings + self._modality_2D[modality]


def choose_kernels(config: LanguageConfig, dtype: torch.dtype, device: torch.device) -> Kernels:
    """Return the fastest kernels there are for a model of this shape and type on this device."""
    if fits(config, dtype=dtype, device=device):
        return TileKernels() if torch.cpu.get_capabilities().get("amx_bf16") else NativeKernels()
    if dtype == torch.bfloat16 and device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return OneDnnKernels(dtype)
    return PlainKernels(dtype)
