"""Run the decoder with weights laid out for the processor."""

from collections.abc import MutableMapping, Sequence

import torch
from torch import Tensor

from chassis.native_library import return_free_memory
from checkpoint.compressed_tensors import take_weight
from checkpoint.families import LanguageConfig, decoder_layout
from checkpoint.lowbit import LowBitWeight, join
from language_service.kernels import Head, Kernels, Layer, PlainHead, Projection, choose_kernels
from language_service.model import Attend, ImageRows, Rotary

# T tokens of the batch, R of them wanted, D model dim, V vocabulary

_TEXT, _IMAGE = 0, 1  # rows of the modality embedding


class ServingDecoder:
    """Computes the same as `Decoder` faster, without gradients.

    Projections with the same input are joined into one. Weights lie in the order in which the kernels read them, with
    as many bits as in the checkpoint. The last layer and the head compute only the wanted rows.
    """

    def __init__(
        self, config: LanguageConfig, tensors: MutableMapping[str, Tensor], kernels: Kernels | None = None
    ) -> None:
        """Take over the tensors of a checkpoint.

        Args:
            config: shape of the model.
            tensors: by name. Empty afterwards, so that no tensor is in memory twice.
            kernels: None takes the fastest for the tensors' type and device.
        """
        self.config = config
        self.num_parameters = sum(spec.num_parameters for spec in decoder_layout(config))
        self.num_weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self.rotary = Rotary(config)
        embedding_VD = tensors.pop("language_model.embed_tokens.weight")
        self.dtype = embedding_VD.dtype
        self.kernels = kernels or choose_kernels(config, embedding_VD.dtype, embedding_VD.device)
        self._modality_2D = tensors.pop("language_model.modality_embedding.weight", None)
        self._norm_D = tensors.pop("language_model.norm.weight")
        layers = [self._take_layer(tensors, f"language_model.layers.{n}.") for n in range(config.num_layers)]
        self._layers = self.kernels.layers(config, layers)
        self._head: Head = self.kernels.head(
            embedding_VD if config.tied_embeddings else take_weight(tensors, "lm_head", None)
        )
        self._embedding: Head = self._head if config.tied_embeddings else PlainHead(embedding_VD)

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return text embeddings [..., D] for `token_ids` [...]."""
        return self._add_modality(self._embedding.embed(token_ids), _TEXT)

    def embed_visual(self, visual_tokens: Tensor) -> Tensor:
        """Return image embeddings [..., D] for `visual_tokens` [..., D]."""
        return self._add_modality(visual_tokens.to(self.dtype), _IMAGE)

    def forward(
        self,
        embeddings_TD: Tensor,
        positions: Tensor,
        attend: Attend,
        rows_R: Tensor,
        images: Sequence[ImageRows] = (),
    ) -> Tensor:
        """Return logits [R, V] of the next token after `rows_R`.

        Args:
            embeddings_TD: of text and images.
            positions: rotary positions, [T] or [3, T], see `Rotary`.
            attend: stores keys and values, and computes attention.
            rows_R: the wanted rows. They must ascend.
            images: DeepStack levels of the images in the batch, in `dtype`. Models without levels ignore them.
        """
        angles = self.rotary.angles(positions, self.kernels.angle_dtype)
        last_RD = self._layers(embeddings_TD, angles, attend, rows_R, images)
        return self._head.logits(self.kernels.rms_norm(last_RD, self._norm_D, self.config.norm_eps))

    def _take_layer(self, tensors: MutableMapping[str, Tensor], prefix: str) -> Layer:
        scheme = None if self.config.quantization is None else self.config.quantization.scheme

        def take(name: str) -> Tensor | None:
            return tensors.pop(prefix + name, None)

        def project(*names: str) -> Projection:
            weights = [take_weight(tensors, prefix + name, scheme) for name in names]
            biases = [bias for name in names if (bias := take(f"{name}.bias")) is not None]
            return self.kernels.project(_join(weights), torch.cat(biases) if biases else None)

        layer = Layer(
            attention_norm=tensors.pop(prefix + "input_layernorm.weight"),
            qkv=project("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            q_norm=take("self_attn.q_norm.weight"),
            k_norm=take("self_attn.k_norm.weight"),
            out=project("self_attn.o_proj"),
            mlp_norm=tensors.pop(prefix + "post_attention_layernorm.weight"),
            gate_up=project("mlp.w1", "mlp.w3"),
            down=project("mlp.w2"),
        )
        # Tensors of up to 32 MiB come from the heap. All of a model would stay there, beside its copy for the kernels.
        return_free_memory()
        return layer

    def _add_modality(self, embeddings: Tensor, modality: int) -> Tensor:
        return embeddings if self._modality_2D is None else embeddings + self._modality_2D[modality]


def _join(weights: Sequence[Tensor | LowBitWeight]) -> Tensor | LowBitWeight:
    """Return the outputs of several matrices as one matrix."""
    if len(weights) == 1:
        return weights[0]
    low_bit = [weight for weight in weights if isinstance(weight, LowBitWeight)]
    return join(low_bit) if low_bit else torch.cat([weight for weight in weights if isinstance(weight, Tensor)])
