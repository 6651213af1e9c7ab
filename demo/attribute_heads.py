"""Auxiliary training loss: predict each item's attributes from vision features.

Linear heads predict kind, colour and material of the item in each third of the image. The loss of the answers reaches
the vision half only through the decoder, which knows nothing at first. These heads give the vision half a direct
signal. They exist only during training and are part of no checkpoint.

B images, R thirds of the image, X thirds or tokens, A attributes, S labels of all attributes, N patches,
W vision width, K visual tokens, D decoder width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoint.families import ResamplerModelConfig
from demo.scenes import COLOURS, KINDS, MATERIALS, POSITIONS, Scene

NOTHING = 0  # label of an empty third
NUM_LABELS = [1 + len(KINDS), 1 + len(COLOURS), 1 + len(MATERIALS)]  # per attribute


def labels(scene: Scene) -> list[list[int]]:
    """Return the labels of each third's item, [thirds][attributes]."""
    items = [scene.at(position) for position in POSITIONS]
    return [
        [1 + KINDS.index(item.kind), 1 + COLOURS.index(item.colour), 1 + MATERIALS.index(item.material)]
        if item
        else [NOTHING] * len(NUM_LABELS)
        for item in items
    ]


class AttributeHeads(nn.Module):
    """Linear heads that predict labels from patches and visual tokens.

    The patch head reads the mean patch of a third. The token head reads one visual token, and each token is assigned to
    one third. So each token learns to describe one whole item, in the same way for every third. The decoder's attention
    can then find an item by its kind and read its other attributes from the same token. Without these heads the
    attributes of an item are scattered over tokens, and the decoder long answers questions about 'the bag' by chance.

    A resampler's tokens have no place in the image, so equal shares of them are assigned to the thirds. Without a
    resampler a token is a patch, and is assigned to the third that the patch lies in.
    """

    third_K: Tensor  # the third that each visual token describes

    def __init__(self, config: ResamplerModelConfig) -> None:
        super().__init__()
        self.side = config.vision.grid_size // config.vision.pool_size
        self.from_patches = nn.Linear(config.vision.width, sum(NUM_LABELS))
        self.from_tokens = nn.Linear(config.language.width, sum(NUM_LABELS))
        self.register_buffer("third_K", _thirds(config), persistent=False)

    def forward(self, patches_BNW: Tensor, visual_BKD: Tensor, labels_BRA: Tensor) -> Tensor:
        """Return the sum of both heads' cross-entropies, means over attributes."""
        columns = torch.unflatten(patches_BNW, 1, (self.side, self.side)).tensor_split(len(POSITIONS), dim=2)
        thirds_BRW = torch.stack([column.mean(dim=(1, 2)) for column in columns], dim=1)
        of_patches = _loss(self.from_patches(thirds_BRW), labels_BRA)
        return of_patches + _loss(self.from_tokens(visual_BKD), labels_BRA[:, self.third_K])


def _thirds(config: ResamplerModelConfig) -> Tensor:
    """Return the third of each visual token, [K]."""
    if config.resampler.kind == "perceiver":
        return torch.arange(config.num_visual_tokens) * len(POSITIONS) // config.num_visual_tokens
    side = config.vision.grid_size // config.vision.pool_size
    columns = torch.arange(side).tensor_split(len(POSITIONS))
    third_of_column = torch.cat([torch.full_like(column, third) for third, column in enumerate(columns)])
    return third_of_column.repeat(side)


def _loss(scores_BXS: Tensor, labels_BXA: Tensor) -> Tensor:
    by_attribute = torch.split(scores_BXS.float(), NUM_LABELS, dim=-1)
    losses = [
        functional.cross_entropy(one.flatten(0, 1), labels_BXA[:, :, attribute].flatten())
        for attribute, one in enumerate(by_attribute)
    ]
    return torch.stack(losses).mean()
