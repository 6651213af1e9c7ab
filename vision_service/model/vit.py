"""The vision transformer: from square images to pooled patches.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (arXiv:2010.11929). Pre-norm blocks over patches, here
without a class token, because the next module uses every patch.

B batch, C colours, S image side in pixels, N patches, G patches a side, P pool side, H heads, E head dim, W width
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the usual name in torch code

from checkpoint.families import VisionConfig
from vision_service.model.linear import LinearAdd, LinearGelu
from vision_service.model.positions import sincos_1d, sincos_2d

# Returns attention [B, N, W]. Takes queries, keys and values [B, N, 3, H, E].
PlainAttend = Callable[[Tensor], Tensor]


class FeedForward(nn.Module):
    """Two linear layers with a GELU between.

    [..., width] -> [..., width].
    """

    def __init__(self, width: int, hidden_width: int, *, bias: bool) -> None:
        super().__init__()
        self.fc1 = LinearGelu(width, hidden_width, bias=bias)
        self.fc2 = LinearAdd(hidden_width, width, bias=bias)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Transform every position independently, and add the residual."""
        return self.fc2(self.fc1(x), residual)  # type: ignore[no-any-return]


class SelfAttention(nn.Module):
    """Multi-head attention between all patches.

    [B, N, W] -> [B, N, W].

    Attributes:
        attend: computes the attention. A backend may replace it by a faster function.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.linear_bias)
        self.proj = LinearAdd(config.width, config.width, bias=config.linear_bias)
        self.attend: PlainAttend = attend

    def forward(self, x_BNW: Tensor, residual_BNW: Tensor) -> Tensor:
        """Attend without a mask, because patches have no order."""
        qkv_BN3HE = self.qkv(x_BNW).unflatten(-1, (3, self.num_heads, -1))
        return self.proj(self.attend(qkv_BN3HE), residual_BNW)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm transformer layer.

    [B, N, W] -> [B, N, W].
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = SelfAttention(config)
        self.norm2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config.width, config.mlp_width, bias=config.linear_bias)

    def forward(self, x_BNW: Tensor) -> Tensor:
        """Apply attention and feed-forward, both residual."""
        x_BNW = self.attn(self.norm1(x_BNW), x_BNW)
        return self.mlp(self.norm2(x_BNW), x_BNW)  # type: ignore[no-any-return]


class PatchEmbed(nn.Module):
    """One linear map of each patch.

    A convolution whose stride equals its kernel. [B, C, S, S] -> [B, N, W].
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size, bias=config.linear_bias)

    def forward(self, pixels_BCSS: Tensor) -> Tensor:
        """Return the patches row by row, left to right."""
        # Contiguous, because every block keeps the order in memory, and norms and sums are slow in another one.
        return self.proj(pixels_BCSS).flatten(2).transpose(1, 2).contiguous()  # type: ignore[no-any-return]


class VisionTransformer(nn.Module):
    """Patch embedding, positions, blocks, norm and average pooling."""

    pos_embed: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.grid_size = config.grid_size
        self.pool_size = config.pool_size
        self.patch_embed = PatchEmbed(config)
        if config.positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(1, config.num_patches, config.width))
        else:
            table_NW = (
                sincos_1d(config.num_patches, config.width)
                if config.positions == "sincos_1d"
                else sincos_2d(config.grid_size, config.width)
            )
            # Computed, so it is not part of a checkpoint.
            self.register_buffer("pos_embed", table_NW.unsqueeze(0), persistent=False)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps, bias=False)

    def forward(self, pixels_BCSS: Tensor) -> Tensor:
        """Return the pooled patches, [B, N / P^2, W]."""
        x_BNW = self.patch_embed(pixels_BCSS) + self.pos_embed
        for block in self.blocks:
            x_BNW = block(x_BNW)
        return self._pool(self.norm(x_BNW))

    def _pool(self, x_BNW: Tensor) -> Tensor:
        if self.pool_size == 1:
            return x_BNW
        batch, _, width = x_BNW.shape
        side, pool = self.grid_size // self.pool_size, self.pool_size
        x_BGPGPW = x_BNW.view(batch, side, pool, side, pool, width)
        return x_BGPGPW.mean(dim=(2, 4)).flatten(1, 2)


def attend(qkv_BN3HE: Tensor) -> Tensor:
    """Return attention [B, N, W] between all patches, by torch."""
    q_BHNE, k_BHNE, v_BHNE = qkv_BN3HE.permute(2, 0, 3, 1, 4)
    return F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE).transpose(1, 2).flatten(2)
