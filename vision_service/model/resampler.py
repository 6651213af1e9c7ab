"""The Perceiver resampler: a fixed number of visual tokens.

Alayrac et al., "Flamingo: a Visual Language Model for Few-Shot Learning", NeurIPS 2022 (arXiv:2204.14198), section
3.1.1 and the pseudocode of its appendix. Learned latents attend to any number of patches, layer after layer.

B batch, N patches, K latents, S = N + K, H heads, E head dim, W vision width, D decoder width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name in torch code

from checkpoint.families import ResamplerConfig
from vision_service.model.linear import LinearAdd
from vision_service.model.vit import FeedForward


class CrossAttention(nn.Module):
    """Multi-head attention of the latents to a context.

    [B, K, W], [B, S, W] -> [B, K, W].
    """

    def __init__(self, config: ResamplerConfig, width: int) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        inner_width = config.num_heads * config.head_dim
        self.to_q = nn.Linear(width, inner_width, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner_width, bias=False)
        self.to_out = LinearAdd(inner_width, width, bias=False)

    def forward(self, latents_BKW: Tensor, context_BSW: Tensor, residual_BKW: Tensor) -> Tensor:
        """Return the residual plus the attention to the context."""
        q_BHKE = self.to_q(latents_BKW).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        kv_BS2HE = self.to_kv(context_BSW).unflatten(-1, (2, self.num_heads, -1))
        k_BHSE, v_BHSE = kv_BS2HE.permute(2, 0, 3, 1, 4)
        out_BHKE = F.scaled_dot_product_attention(q_BHKE, k_BHSE, v_BHSE)
        return self.to_out(out_BHKE.transpose(1, 2).flatten(2), residual_BKW)  # type: ignore[no-any-return]


class ResamplerLayer(nn.Module):
    """Cross-attention, then feed-forward, both pre-norm and residual.

    [B, K, W], [B, N, W] -> [B, K, W].
    """

    def __init__(self, config: ResamplerConfig, width: int) -> None:
        super().__init__()
        self.norm_patches = nn.LayerNorm(width, eps=config.norm_eps)
        self.norm_latents = nn.LayerNorm(width, eps=config.norm_eps)
        self.cross_attn = CrossAttention(config, width)
        self.norm_mlp = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = FeedForward(width, config.mlp_width, bias=False)

    def forward(self, latents_BKW: Tensor, patches_BNW: Tensor) -> Tensor:
        """Update the latents from the patches."""
        queries_BKW = self.norm_latents(latents_BKW)
        # Latents attend to each other too, not only to the image.
        context_BSW = torch.cat([self.norm_patches(patches_BNW), queries_BKW], dim=1)
        latents_BKW = self.cross_attn(queries_BKW, context_BSW, latents_BKW)
        return self.mlp(self.norm_mlp(latents_BKW), latents_BKW)  # type: ignore[no-any-return]


class PerceiverResampler(nn.Module):
    """Learned queries that attend to the patches.

    The result is projected to the decoder's width. [B, N, W] -> [B, K, D].
    """

    def __init__(self, config: ResamplerConfig, *, width: int, decoder_width: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(config.num_queries, width))
        self.layers = nn.ModuleList(ResamplerLayer(config, width) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.proj = nn.Linear(width, decoder_width, bias=False)

    def forward(self, patches_BNW: Tensor) -> Tensor:
        """Return the visual tokens, one per query."""
        latents_BKW = self.query.expand(patches_BNW.shape[0], -1, -1)
        for layer in self.layers:
            latents_BKW = layer(latents_BKW, patches_BNW)
        return self.proj(self.norm(latents_BKW))  # type: ignore[no-any-return]
