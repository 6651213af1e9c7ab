"""Training graph of the whole model, and its loss.

B images, K visual tokens, P tokens up to the end of the image, N conversations of a group, L tokens of its longest,
T all tokens laid end to end, H query heads, G key-value heads, E head dim, D decoder width, V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from checkpoint.families import ResamplerModelConfig
from demo.attribute_heads import AttributeHeads
from demo.batches import IGNORED, Batch, Group
from language_service.model import Attend, Decoder
from vision_service.model import VisionHalf, sincos_2d


@dataclass(frozen=True, slots=True)
class Answers:
    """Losses and exact matches of one batch."""

    loss: Tensor  # mean over the tokens of the answers
    attribute_loss: Tensor  # of `demo.attribute_heads`
    right: list[Tensor]  # per group, bool [N]: greedy decoding would give every answer exactly


class Learner(nn.Module):
    """Both halves of a model, joined for training."""

    before_image: Tensor

    def __init__(self, config: ResamplerModelConfig, before_image: Sequence[int]) -> None:
        """Make untrained halves.

        `before_image` holds the token ids before the image, which are the same in every conversation.
        """
        super().__init__()
        self.vision = VisionHalf(config)
        self.vision.reset_parameters()
        self._initialise_positions(config)
        self.language = Decoder(config.language)
        self.attribute_heads = AttributeHeads(config)
        self.register_buffer("before_image", torch.tensor(before_image), persistent=False)

    def _initialise_positions(self, config: ResamplerModelConfig) -> None:
        """Initialise learned positions with sines and cosines.

        Small random positions would be lost against the patch embeddings.
        """
        if config.vision.positions == "learned":
            table_NW = sincos_2d(config.vision.grid_size, config.vision.width)
            self.vision.vision_tower.pos_embed.data.copy_(table_NW)

    def checkpoint_tensors(self) -> dict[str, Tensor]:
        """Return the weights, by their names in a checkpoint."""
        return {**self.vision.state_dict(), **self.language.state_dict()}

    def forward(self, batch: Batch) -> Answers:
        """Predict every answer of a batch."""
        patches_BNW = self.vision.vision_tower(batch.pixels_B3SS)
        vision = self.vision
        to_tokens = vision.perceiver_resampler if vision.has_resampler else vision.vision_projection
        visual_BKD = to_tokens(patches_BNW)
        attribute_loss = self.attribute_heads(patches_BNW, visual_BKD, batch.labels_BRA)
        prefix_BPD = self._embed_prefix(visual_BKD)
        num_images, prefix_length, width = prefix_BPD.shape
        shapes = [group.token_ids_NL.shape for group in batch.groups]
        embeddings_TD = torch.cat(
            [prefix_BPD.flatten(0, 1)]
            + [self.language.embed(group.token_ids_NL).reshape(-1, width) for group in batch.groups]
        )
        positions_T = torch.cat(
            [torch.arange(prefix_length).repeat(num_images)]
            + [(prefix_length + torch.arange(length)).repeat(num) for num, length in shapes]
        )
        attend = shared_prefix_attend(num_images, prefix_length, batch.groups)
        hidden_TD = self.language(embeddings_TD, positions_T, attend)
        loss, right = self._judge(hidden_TD[num_images * prefix_length :], batch.groups)
        return Answers(loss, attribute_loss, right)

    def _embed_prefix(self, visual_BKD: Tensor) -> Tensor:
        before_BTD = self.language.embed(self.before_image).expand(len(visual_BKD), -1, -1)
        return torch.cat([before_BTD, self.language.embed_visual(visual_BKD)], dim=1)

    def _judge(self, hidden_TD: Tensor, groups: Sequence[Group]) -> tuple[Tensor, list[Tensor]]:
        targets_T = torch.cat([group.targets_NL.flatten() for group in groups])
        # Logits are as wide as the vocabulary: compute them for answer tokens only.
        is_answer_T = targets_T != IGNORED
        logits_SV = self.language.logits(hidden_TD[is_answer_T]).float()
        right_T = torch.ones_like(is_answer_T)
        right_T[is_answer_T] = logits_SV.argmax(dim=-1) == targets_T[is_answer_T]
        sizes = [group.targets_NL.numel() for group in groups]
        right = [
            part.view(group.targets_NL.shape).all(dim=1)
            for part, group in zip(torch.split(right_T, sizes), groups, strict=True)
        ]
        return functional.cross_entropy(logits_SV, targets_T[is_answer_T]), right


def shared_prefix_attend(num_images: int, prefix_length: int, groups: Sequence[Group]) -> Attend:
    """Return causal attention in which conversations share their image's prefix.

    The tokens are all prefixes, end to end, then the groups of conversations. Each conversation continues one prefix.
    The result equals causal attention over every conversation with its own copy of the prefix. Padding is on the right,
    so causal attention hides it from all real tokens.
    """
    sizes = [num_images * prefix_length, *(group.token_ids_NL.numel() for group in groups)]

    def attend(_layer: int, q_THE: Tensor, k_TGE: Tensor, v_TGE: Tensor) -> Tensor:
        (q_prefix, *q_groups), (k_prefix, *k_groups), (v_prefix, *v_groups) = (
            torch.split(x, sizes) for x in (q_THE, k_TGE, v_TGE)
        )
        prefix = [_by_sequence(x, num_images) for x in (q_prefix, k_prefix, v_prefix)]
        outs = [_attend(*prefix)]
        for group, q, k, v in zip(groups, q_groups, k_groups, v_groups, strict=True):
            num = len(group.token_ids_NL)
            k_NGSE = torch.cat([prefix[1][group.image_N], _by_sequence(k, num)], dim=2)
            v_NGSE = torch.cat([prefix[2][group.image_N], _by_sequence(v, num)], dim=2)
            outs.append(_attend(_by_sequence(q, num), k_NGSE, v_NGSE))
        return torch.cat(outs)

    return attend


def _by_sequence(x_THE: Tensor, num_sequences: int) -> Tensor:
    """[N * L, H, E] -> [N, H, L, E]."""
    return x_THE.view(num_sequences, -1, *x_THE.shape[1:]).transpose(1, 2)


def _attend(q_NHLE: Tensor, k_NGSE: Tensor, v_NGSE: Tensor) -> Tensor:
    """Attend causally, with the last query at the last key.

    Returns [N * L, H, E].
    Written out because the backward pass of torch's bfloat16 kernel takes five times as long on a CPU at this size.
    """
    num, heads, length, head_dim = q_NHLE.shape
    kv_heads, span = k_NGSE.shape[1:3]
    # Query heads that share a key-value head are stacked as additional queries of that head.
    q_NGQE = (q_NHLE * head_dim**-0.5).reshape(num, kv_heads, -1, head_dim)
    later_LS = torch.ones(length, span, dtype=torch.bool).triu(span - length + 1)
    scores_NHLS = (q_NGQE @ k_NGSE.transpose(-1, -2)).view(num, heads, length, span)
    weights_NHLS = scores_NHLS.masked_fill(later_LS, float("-inf")).softmax(dim=-1)
    out_NGQE = weights_NHLS.view(num, kv_heads, -1, span).to(v_NGSE.dtype) @ v_NGSE
    out_NHLE: Tensor = out_NGQE.view(num, heads, length, head_dim)
    return out_NHLE.transpose(1, 2).flatten(0, 1)
