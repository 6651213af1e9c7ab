"""What the vision half is asked for directly while it learns: kind, colour and material of the item in each third.

Answers alone teach it through the whole decoder, which at first knows nothing itself; the probes are a short way. They
are part of training only and of no checkpoint.

B images, R thirds of the image, X thirds or tokens, A attributes, S labels of all attributes, N patches,
W vision width, K visual tokens, D decoder width
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoint.config import ModelConfig
from demo.scenes import COLOURS, KINDS, MATERIALS, POSITIONS, Scene

NOTHING = 0  # the label where a third is empty
NUM_LABELS = [1 + len(KINDS), 1 + len(COLOURS), 1 + len(MATERIALS)]  # by attribute


def labels(scene: Scene) -> list[list[int]]:
    """Return what there is in each third, by attribute, as the probes number it."""
    items = [scene.at(position) for position in POSITIONS]
    return [
        [1 + KINDS.index(item.kind), 1 + COLOURS.index(item.colour), 1 + MATERIALS.index(item.material)]
        if item
        else [NOTHING] * len(NUM_LABELS)
        for item in items
    ]


class Probes(nn.Module):
    """One linear map from the patches of a third, and one from a visual token, to the labels.

    Each visual token is to tell all of one item, in the same way for every third. A decoder can then find an item by
    its kind, by attention, and read the rest where it found it. Tokens left to themselves scatter an item's attributes,
    and the decoder long answers questions about 'the bag' by chance.
    """

    third_K: Tensor  # which third each visual token is to tell of

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.side = config.vision.grid_size // config.vision.pool_size
        self.from_patches = nn.Linear(config.vision.width, sum(NUM_LABELS))
        self.from_tokens = nn.Linear(config.language.width, sum(NUM_LABELS))
        third_K = torch.arange(config.num_visual_tokens) * len(POSITIONS) // config.num_visual_tokens
        self.register_buffer("third_K", third_K, persistent=False)

    def forward(self, patches_BNW: Tensor, visual_BKD: Tensor, labels_BRA: Tensor) -> Tensor:
        """Return how far both maps are from the labels, the mean of cross-entropies."""
        columns = torch.unflatten(patches_BNW, 1, (self.side, self.side)).tensor_split(len(POSITIONS), dim=2)
        thirds_BRW = torch.stack([column.mean(dim=(1, 2)) for column in columns], dim=1)
        of_patches = _loss(self.from_patches(thirds_BRW), labels_BRA)
        return of_patches + _loss(self.from_tokens(visual_BKD), labels_BRA[:, self.third_K])


def _loss(scores_BXS: Tensor, labels_BXA: Tensor) -> Tensor:
    by_attribute = torch.split(scores_BXS.float(), NUM_LABELS, dim=-1)
    losses = [
        functional.cross_entropy(one.flatten(0, 1), labels_BXA[:, :, attribute].flatten())
        for attribute, one in enumerate(by_attribute)
    ]
    return torch.stack(losses).mean()
