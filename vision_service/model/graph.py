"""The vision halves as graphs of dynamic shape, for export.

A graph takes float32 and returns visual tokens in the type of its weights. Positions and rotary tables are inputs: they
depend on an image's size, and cost little. All images of a graph's batch have the same number of patches, so attention
stays within an image without a mask.

B batch, S image side in pixels, p patches of one image, C pixels of a patch, H heads, E head dim, F = E / 2, W vision
width, n visual tokens of one image, D decoder width, L levels
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from checkpoint.families import ModelConfig, Qwen3VLConfig
from vision_service.model.encoder import VisionHalf
from vision_service.model.grids import interpolation, rotary_angles, to_patches
from vision_service.model.qwen3_vl import Attention, Qwen3VisionHalf, rotate

OUTPUT = "tokens"

Inputs = dict[str, NDArray[Any]]  # by input name. The first dimension is the batch

# Runs a graph once. Takes the inputs and the shape of the result, and returns visual tokens [B, n, L x D] of any float
# type. Their memory may be that of the next result.
Run = Callable[[Inputs, tuple[int, int, int]], Tensor]


@dataclass(frozen=True, slots=True)
class GraphBatch:
    """Images that one run of a graph takes together."""

    images: tuple[int, ...]  # their places in the list of images
    inputs: Inputs
    num_tokens: int  # of each image


def graph_batches(config: ModelConfig, images: Sequence[NDArray[np.float32]]) -> list[GraphBatch]:
    """Return the inputs of a model's graph for some images.

    Args:
        config: of the model.
        images: normalised RGB pixels of each, [3, height, width].
    """
    if not isinstance(config, Qwen3VLConfig):
        num_tokens = config.num_visual_tokens or 0
        return [GraphBatch(tuple(range(len(images))), {"pixels": np.stack(images)}, num_tokens)]
    same_length: dict[int, list[int]] = {}
    for place, image in enumerate(images):
        same_length.setdefault(image.shape[1] * image.shape[2], []).append(place)
    batches = []
    for places in same_length.values():
        parts = [_qwen3_inputs(config, torch.from_numpy(images[place])) for place in places]
        inputs = {name: torch.stack([part[name] for part in parts]).numpy() for name in parts[0]}
        num_tokens = inputs["patches"].shape[1] // config.vision.merge_size**2
        batches.append(GraphBatch(tuple(places), inputs, num_tokens))
    return batches


def build_graph(half: VisionHalf | Qwen3VisionHalf) -> nn.Module:
    """Return the graph of a vision half.

    It shares the weights, and the half cannot be used by itself afterwards. The parameters of the graph's `forward` are
    its inputs, in order.
    """
    return Qwen3Graph(half) if isinstance(half, Qwen3VisionHalf) else ResamplerGraph(half)


def dynamic_dimensions(config: ModelConfig) -> dict[str, dict[int, str]]:
    """Return the dynamic dimensions of each input.

    'batch' is the number of images, 'patches' the patches of each, a multiple of the merge window.
    """
    if not isinstance(config, Qwen3VLConfig):
        return {"pixels": {0: "batch"}}
    patches = {"patches": 1, "corners": 2, "corner_weights": 2, "cosines": 1, "sines": 1}
    return {name: {0: "batch", dimension: "patches"} for name, dimension in patches.items()}


class ResamplerGraph(nn.Module):
    """The graph of the resampler family."""

    def __init__(self, half: VisionHalf) -> None:
        super().__init__()
        self.vision = half
        self.dtype = next(half.parameters()).dtype

    def forward(self, pixels: Tensor) -> Tensor:
        """Return visual tokens [B, n, D] for normalised pixels [B, 3, S, S]."""
        tokens: Tensor = self.vision(pixels.to(self.dtype))
        return tokens


class Qwen3Graph(nn.Module):
    """The graph of Qwen3-VL's tower."""

    def __init__(self, half: Qwen3VisionHalf) -> None:
        super().__init__()
        self.tower = half.visual
        embed = half.visual.patch_embed
        self.dtype = embed.proj.weight.dtype
        self.patch_weight = nn.Parameter(embed.weight().to(self.dtype), requires_grad=False)
        for module in self.tower.modules():
            if isinstance(module, Attention):
                module.attend = _attend_equal

    def forward(
        self, patches: Tensor, corners: Tensor, corner_weights: Tensor, cosines: Tensor, sines: Tensor
    ) -> Tensor:
        """Return visual tokens [B, n, L x D], levels side by side.

        Args:
            patches: pixels [B, p, C], in blocks of merge x merge.
            corners: indices of the learned positions around each patch, [B, 4, p], int64.
            corner_weights: their weights [B, 4, p].
            cosines: of the rotary angles, [B, p, F].
            sines: of the same, [B, p, F].
        """
        batch = patches.shape[0]
        x_BpW = functional.linear(patches.to(self.dtype), self.patch_weight, self.tower.patch_embed.proj.bias)
        positions_BpW: Tensor = sum(
            self.tower.pos_embed(corners[:, i]) * corner_weights[:, i, :, None] for i in range(4)
        )
        x_BpW = x_BpW + positions_BpW.to(self.dtype)
        tokens_NLD = self.tower.run_blocks(x_BpW.flatten(0, 1), (cosines[:, :, None], sines[:, :, None]), [])
        return tokens_NLD.view(batch, -1, tokens_NLD.shape[1] * tokens_NLD.shape[2])


def _attend_equal(qkv_P3HE: Tensor, cos_Bp1F: Tensor, sin_Bp1F: Tensor, _lengths: list[int]) -> Tensor:
    """Return attention [P, W] of images with equally many patches."""
    batch, length = cos_Bp1F.shape[:2]
    q_BpHE, k_BpHE, v_BpHE = qkv_P3HE.view(batch, length, 3, *qkv_P3HE.shape[2:]).unbind(2)
    q_BpHE, k_BpHE = rotate(q_BpHE, cos_Bp1F, sin_Bp1F), rotate(k_BpHE, cos_Bp1F, sin_Bp1F)
    q_BHpE, k_BHpE, v_BHpE = (x.transpose(1, 2) for x in (q_BpHE, k_BpHE, v_BpHE))
    out_BHpE = functional.scaled_dot_product_attention(q_BHpE, k_BHpE, v_BHpE)
    return out_BHpE.transpose(1, 2).flatten(2).flatten(0, 1)


def _qwen3_inputs(config: Qwen3VLConfig, image_3HW: Tensor) -> Mapping[str, Tensor]:
    """Return the inputs of one image, without the batch."""
    vision, device = config.vision, torch.device("cpu")
    grid = (image_3HW.shape[1] // vision.patch_size, image_3HW.shape[2] // vision.patch_size)
    corners_4p, weights_4p = interpolation(grid, vision, device)
    angles_pF = rotary_angles(grid, vision, device)
    return {
        "patches": to_patches(image_3HW, vision.patch_size, vision.merge_size),
        "corners": corners_4p,
        "corner_weights": weights_4p,
        "cosines": angles_pF.cos(),
        "sines": angles_pF.sin(),
    }
