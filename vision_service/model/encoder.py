"""The vision half: vision transformer, then resampler or projection.

B batch, S image side in pixels, N pooled patches, W vision width, K visual tokens, D decoder width
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from checkpoint.families import ResamplerModelConfig
from vision_service.model.resampler import PerceiverResampler
from vision_service.model.vit import VisionTransformer

# Standard deviation of a text embedding before training, as in GPT-2, Llama and Qwen.
_EMBEDDING_STD = 0.02


class VisionHalf(nn.Module):
    """Turns pixels into visual tokens.

    Parameters have the names of the checkpoint. They are uninitialised until weights are
    loaded or `reset_parameters` is called.
    """

    def __init__(self, config: ResamplerModelConfig) -> None:
        super().__init__()
        width, decoder_width = config.vision.width, config.language.width
        self.vision_tower = VisionTransformer(config.vision)
        if config.resampler.kind == "perceiver":
            self.perceiver_resampler = PerceiverResampler(config.resampler, width=width, decoder_width=decoder_width)
        else:
            self.vision_projection = nn.Linear(width, decoder_width, bias=False)
        self.has_resampler = config.resampler.kind == "perceiver"

    def forward(self, pixels_B3SS: Tensor) -> Tensor:
        """Return the visual tokens, [B, K, D].

        Pixels are normalised RGB in the data type of the weights.
        """
        patches_BNW = self.vision_tower(pixels_B3SS)
        head = self.perceiver_resampler if self.has_resampler else self.vision_projection
        return head(patches_BNW)  # type: ignore[no-any-return]

    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Return visual tokens [K, D] of images [3, S, S]."""
        return list(self(torch.stack(list(images))))

    def reset_parameters(self) -> None:
        """Draw initial weights for training.

        They come from torch's global random state. Projections are Xavier-uniform, as in MAE's ViT. This also works at
        small widths, where a fixed 0.02 would not. The resampler's queries are drawn at unit scale, as in OpenFlamingo,
        so that they stay distinct after the first layer. Visual tokens get the scale of initial text embeddings, so
        that the decoder attends to both.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
            elif isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.data.flatten(1))
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(self.vision_tower.pos_embed, nn.Parameter):
            nn.init.trunc_normal_(self.vision_tower.pos_embed, std=0.02)
        if self.has_resampler:
            nn.init.normal_(self.perceiver_resampler.query)
        to_decoder = self.perceiver_resampler.proj if self.has_resampler else self.vision_projection
        nn.init.normal_(to_decoder.weight, std=_EMBEDDING_STD / math.sqrt(to_decoder.in_features))
