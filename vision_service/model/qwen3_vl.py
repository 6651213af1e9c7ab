"""The vision tower of Qwen3-VL, with DeepStack levels.

Module names are the checkpoint's tensor names. Patches of all images lie end to end, in blocks of merge x merge, so
that the patches of one visual token are neighbours. Attention stays within an image. Source: `Qwen3VLVisionModel` of
transformers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoint.families import Qwen3VisionConfig, Qwen3VLConfig
from vision_service.model.grids import Grid, interpolation, rotary_angles, to_patches
from vision_service.model.linear import LinearAdd, LinearGelu

# P patches of all images, p of one image, N visual tokens, W vision width, D decoder width, L levels, H heads,
# E head dim, M merge x merge patches of a visual token, C = 3 x patch x patch pixels of a patch

# Returns attention [P, W]. Takes queries, keys and values [P, 3, H, E], cosine and sine of rotary angles [P, 1, E / 2],
# and the patches of each image.
Attend = Callable[[Tensor, Tensor, Tensor, list[int]], Tensor]


class PatchEmbed(nn.Module):
    """Projects the pixels of each patch.

    A still image fills all frames of a patch alike, so the weights of the frames are summed.
    """

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv3d(3, config.width, (config.temporal_patch_size, patch, patch))

    def forward(self, patches_PC: Tensor) -> Tensor:
        """Return [P, W] for pixels [P, C], channel by channel."""
        return functional.linear(patches_PC, self.weight().to(patches_PC.dtype), self.proj.bias)

    def weight(self) -> Tensor:
        """Return the weights [W, C] of a still image, in float32."""
        return self.proj.weight.float().sum(dim=2).flatten(1)


class Attention(nn.Module):
    """Full attention within each image, with two-dimensional rotary positions.

    Attributes:
        attend: computes the attention. A backend may replace it by a faster function.
    """

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.num_heads, config.head_dim
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = LinearAdd(config.width, config.width)
        self.attend: Attend = attend

    def forward(self, x_PW: Tensor, residual_PW: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        """Return the residual plus the attention, [P, W].

        `lengths` are the patches of each image.
        """
        qkv_P3HE = self.qkv(x_PW).view(-1, 3, self.num_heads, self.head_dim)
        out_PW: Tensor = self.proj(self.attend(qkv_P3HE, *angles, lengths), residual_PW)
        return out_PW


class FeedForward(nn.Module):
    """Two layers with the tanh approximation of GELU between them."""

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = LinearGelu(config.width, config.mlp_width, approximate="tanh")
        self.linear_fc2 = LinearAdd(config.mlp_width, config.width)

    def forward(self, x_PW: Tensor, residual_PW: Tensor) -> Tensor:
        """Return the residual plus the layers' result, [P, W]."""
        out_PW: Tensor = self.linear_fc2(self.linear_fc1(x_PW), residual_PW)
        return out_PW


class Block(nn.Module):
    """One pre-norm layer with attention and feed-forward."""

    def __init__(self, config: Qwen3VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, config.norm_eps)
        self.norm2 = nn.LayerNorm(config.width, config.norm_eps)
        self.attn = Attention(config)
        self.mlp = FeedForward(config)

    def forward(self, x_PW: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        """Return [P, W]."""
        x_PW = self.attn(self.norm1(x_PW), x_PW, angles, lengths)
        out_PW: Tensor = self.mlp(self.norm2(x_PW), x_PW)
        return out_PW


class Merger(nn.Module):
    """Joins and projects the patches of each visual token.

    The result has the decoder's width. GELU is exact here.
    """

    def __init__(self, config: Qwen3VisionConfig, token_width: int, *, norm_after_merge: bool) -> None:
        super().__init__()
        self.merged_width = config.width * config.merge_size**2
        self.norm = nn.LayerNorm(self.merged_width if norm_after_merge else config.width, config.norm_eps)
        self.linear_fc1 = LinearGelu(self.merged_width, self.merged_width, approximate="none")
        self.linear_fc2 = nn.Linear(self.merged_width, token_width)

    def forward(self, x_PW: Tensor) -> Tensor:
        """Return [N, D] for patches [P, W] in blocks."""
        x = x_PW.view(-1, self.norm.normalized_shape[0])
        x_NMW = self.norm(x).view(-1, self.merged_width)
        out_ND: Tensor = self.linear_fc2(self.linear_fc1(x_NMW))
        return out_ND


class Qwen3VisionTower(nn.Module):
    """The tensors named `visual.*`."""

    def __init__(self, config: Qwen3VisionConfig, token_width: int) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = nn.Embedding(config.num_positions, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.merger = Merger(config, token_width, norm_after_merge=False)
        self.deepstack_merger_list = nn.ModuleList(
            Merger(config, token_width, norm_after_merge=True) for _ in config.deepstack_layers
        )

    def forward(self, patches_PC: Tensor, grids: list[Grid]) -> Tensor:
        """Return the visual tokens [N, L, D] of all images.

        The first of the L vectors is the embedding, the others are DeepStack levels.

        Args:
            patches_PC: normalised pixels of the patches, in blocks of merge x merge.
            grids: patches of each image, both numbers multiples of the merge size.
        """
        x_PW = self.patch_embed(patches_PC)
        x_PW = x_PW + torch.cat([self._positions(grid) for grid in grids]).to(x_PW.dtype)
        return self.run_blocks(x_PW, self._angles(grids), [rows * columns for rows, columns in grids])

    def run_blocks(self, x_PW: Tensor, angles: tuple[Tensor, Tensor], lengths: list[int]) -> Tensor:
        """Return the visual tokens [N, L, D] of embedded patches.

        Args:
            x_PW: patches with their learned positions.
            angles: cosine and sine, as `Attend` takes them.
            lengths: patches of each image.
        """
        levels: list[Tensor] = []
        mergers = dict(zip(self.config.deepstack_layers, self.deepstack_merger_list, strict=True))
        for index, block in enumerate(self.blocks):
            x_PW = block(x_PW, angles, lengths)
            if index in mergers:
                levels.append(mergers[index](x_PW))
        return torch.stack([self.merger(x_PW), *levels], dim=1)

    def _positions(self, grid: Grid) -> Tensor:
        """Return the learned positions [p, W] of one image, interpolated."""
        indices_4p, weights_4p = interpolation(grid, self.config, self.pos_embed.weight.device)
        positions_pW: Tensor = sum(
            self.pos_embed(indices) * weights[:, None] for indices, weights in zip(indices_4p, weights_4p, strict=True)
        )
        return positions_pW

    def _angles(self, grids: list[Grid]) -> tuple[Tensor, Tensor]:
        """Return cosine and sine [P, 1, E / 2] of rows and columns, in float32."""
        device = self.pos_embed.weight.device
        angles_PF = torch.cat([rotary_angles(grid, self.config, device) for grid in grids])
        return angles_PF.cos()[:, None], angles_PF.sin()[:, None]


class Qwen3VisionHalf(nn.Module):
    """The vision half of a Qwen3-VL model."""

    def __init__(self, config: Qwen3VLConfig) -> None:
        super().__init__()
        self.visual = Qwen3VisionTower(config.vision, config.language.width)

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return visual tokens [N, L x D] of images [3, height, width].

        Height and width are multiples of a visual token's side. The images run in one forward pass.
        """
        config = self.visual.config
        grids = [(image.shape[1] // config.patch_size, image.shape[2] // config.patch_size) for image in images]
        patches_PC = torch.cat([to_patches(image, config.patch_size, config.merge_size) for image in images])
        tokens_NLD: Tensor = self.visual(patches_PC, grids)
        counts = [rows * columns // config.merge_size**2 for rows, columns in grids]
        return list(torch.split(tokens_NLD.flatten(1), counts))


def attend(qkv_P3HE: Tensor, cos_P1F: Tensor, sin_P1F: Tensor, lengths: list[int]) -> Tensor:
    """Return attention [P, W] within each image, by torch."""
    q_PHE, k_PHE, v_PHE = qkv_P3HE.unbind(1)
    q_PHE, k_PHE = rotate(q_PHE, cos_P1F, sin_P1F), rotate(k_PHE, cos_P1F, sin_P1F)
    images = zip(*(torch.split(part, lengths) for part in (q_PHE, k_PHE, v_PHE)), strict=True)
    out = [functional.scaled_dot_product_attention(*(x.transpose(0, 1)[None] for x in image)) for image in images]
    return torch.cat([one[0].transpose(0, 1).flatten(1) for one in out])


def rotate(x_PHE: Tensor, cos_P1F: Tensor, sin_P1F: Tensor) -> Tensor:
    """Rotate the pairs of every head.

    Computed in float32.
    """
    first, second = x_PHE.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos_P1F - second * sin_P1F, second * cos_P1F + first * sin_P1F], dim=-1)
    return turned.to(x_PHE.dtype)
