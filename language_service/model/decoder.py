"""The decoder: grouped-query attention, RMSNorm, SwiGLU, rotary positions.

Module names are the checkpoint's tensor names. Tokens of all sequences lie end to end in one flat dimension T. The
caller's `attend` decides which tokens see each other. So training, prefill and decoding run the same code.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoint.families import LanguageConfig
from language_service.model.attention import Attend
from language_service.model.deepstack import ImageRows
from language_service.model.rotary import Rotary, rotate

# T tokens, D model dim, H query heads, G key-value heads, E head dim, V vocabulary

_INIT_STD = 0.02
_TEXT, _IMAGE = 0, 1  # rows of the modality embedding


class RMSNorm(nn.Module):
    """Scales to unit RMS, then by a learned weight.

    Computes in float32 and rounds once.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` over its last dimension. Keeps its type."""
        return functional.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).type_as(x)


class SelfAttention(nn.Module):
    """Attention with its projections.

    H query heads share G key-value heads.
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        heads, kv_heads, bias = config.num_heads, config.num_kv_heads, config.attention_bias
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(config.width, heads * config.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.width, kv_heads * config.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.width, kv_heads * config.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * config.head_dim, config.width, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_TD: Tensor, angles: tuple[Tensor, Tensor], layer: int, attend: Attend) -> Tensor:
        """Return the output of attention for each token, [T, D]."""
        q_THE, k_TGE, v_TGE = (
            proj(x_TD).view(len(x_TD), -1, self.head_dim) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Normalise each head before the rotation, as Qwen3 does. A rotation keeps lengths.
        q_THE = rotate(self.q_norm(q_THE), *angles)
        k_TGE = rotate(self.k_norm(k_TGE), *angles)
        out_TD: Tensor = self.o_proj(attend(layer, q_THE, k_TGE, v_TGE).flatten(1))
        return out_TD


class SwiGLU(nn.Module):
    """Feed-forward layer: w2(silu(w1(x)) * w3(x))."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, mlp_width, bias=False)
        self.w3 = nn.Linear(width, mlp_width, bias=False)
        self.w2 = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Return [T, D]."""
        out_TD: Tensor = self.w2(functional.silu(self.w1(x_TD)) * self.w3(x_TD))
        return out_TD


class DecoderLayer(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each with a residual."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.width, config.norm_eps)
        self.self_attn = SelfAttention(config)
        self.post_attention_layernorm = RMSNorm(config.width, config.norm_eps)
        self.mlp = SwiGLU(config.width, config.mlp_width)

    def forward(self, x_TD: Tensor, angles: tuple[Tensor, Tensor], layer: int, attend: Attend) -> Tensor:
        """Return [T, D]."""
        x_TD = x_TD + self.self_attn(self.input_layernorm(x_TD), angles, layer, attend)
        out_TD: Tensor = x_TD + self.mlp(self.post_attention_layernorm(x_TD))
        return out_TD


class LanguageModel(nn.Module):
    """Embedding, layers and final norm: the tensors named `language_model.*`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        self.modality_embedding = nn.Embedding(2, config.width) if config.modality_embedding else None
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.width, config.norm_eps)


class Decoder(nn.Module):
    """The language half of a model, with new random weights.

    Weights are normal with a standard deviation of 0.02. In the two projections of each layer that add to the residual
    stream, it is divided by sqrt(2 * layers). So the stream does not grow with depth (GPT-2).
    """

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.config = config
        self.language_model = LanguageModel(config)
        # A tied head is the embedding itself. The checkpoint has no tensor for it.
        self.lm_head = None if config.tied_embeddings else nn.Linear(config.width, config.vocab_size, bias=False)
        self.rotary = Rotary(config)
        self._initialise()

    def embed(self, token_ids: Tensor) -> Tensor:
        """Return text embeddings [..., D] for `token_ids` [...]."""
        embeddings: Tensor = self.language_model.embed_tokens(token_ids)
        return self._add_modality(embeddings, _TEXT)

    def embed_visual(self, visual_tokens: Tensor) -> Tensor:
        """Return image embeddings [..., D] for `visual_tokens` [..., D]."""
        return self._add_modality(visual_tokens.to(self.language_model.embed_tokens.weight.dtype), _IMAGE)

    def forward(
        self, embeddings_TD: Tensor, positions: Tensor, attend: Attend, images: Sequence[ImageRows] = ()
    ) -> Tensor:
        """Return the normalised hidden states [T, D].

        Args:
            embeddings_TD: of text and images.
            positions: rotary positions, [T] or [3, T], see `Rotary`.
            attend: decides which tokens see each other.
            images: DeepStack levels of the images in the batch, if the model has any.
        """
        angles = self.rotary.angles(positions, embeddings_TD.dtype)
        hidden_TD = embeddings_TD
        for index, layer in enumerate(self.language_model.layers):
            hidden_TD = layer(hidden_TD, angles, index, attend)
            if index < self.config.num_deepstack_levels:
                for image in images:
                    image.add_level(index, hidden_TD)
        normed_TD: Tensor = self.language_model.norm(hidden_TD)
        return normed_TD

    def logits(self, hidden: Tensor) -> Tensor:
        """Return logits [..., V] for hidden states [..., D]."""
        head = self.language_model.embed_tokens if self.lm_head is None else self.lm_head
        return functional.linear(hidden, head.weight)

    def _add_modality(self, embeddings: Tensor, modality: int) -> Tensor:
        table = self.language_model.modality_embedding
        return embeddings if table is None else embeddings + table.weight[modality]

    def _initialise(self) -> None:
        residual_std = _INIT_STD / math.sqrt(2 * self.config.num_layers)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=residual_std if name.endswith(("o_proj", "w2")) else _INIT_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=_INIT_STD)
