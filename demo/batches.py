"""Training batches: images, each with several conversations about it.

Training spends most of its time on encoding images. So each image is encoded once and all of its conversations share
its visual tokens. The batch of a step depends only on the step's number: a restarted run sees the same batches.

B images, S image side in pixels, R thirds of an image, A attributes, N conversations, L tokens of the longest
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from checkpoint.families import ResamplerModelConfig
from checkpoint.tokenizer import CHAT_TEMPLATE
from demo.attribute_heads import labels
from demo.drawing import draw
from demo.questions import LANGUAGES, TOPICS, Conversation, Topic, ask
from demo.scenes import Scene, make_scene
from processing import ChatMessage, ChatTemplate, ImagePart, PromptBuilder, TextPart, TextSegment, open_image_processor

IGNORED = -100  # target of a token without loss: the default ignore_index of cross_entropy
PADDING = 0  # token id. It stands last, so causal attention hides it from all real tokens.
# Topics of the later batches. Most take two steps: find the item, then read or compare an attribute.
LATER_TOPICS: tuple[Topic, ...] = (
    *TOPICS,
    *("kind", "colour", "colour", "material", "material"),
    *("yes or no", "yes or no", "yes or no", "two turns", "two turns"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Conversations of similar length, which need little padding."""

    image_N: Tensor  # index in the batch of each conversation's image
    token_ids_NL: Tensor  # tokens after the image
    targets_NL: Tensor  # the next token where it belongs to an answer, else IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Training data of one step."""

    pixels_B3SS: Tensor
    labels_BRA: Tensor  # attributes of the items, as `demo.attribute_heads` numbers them
    groups: list[Group]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Size and mix of a batch.

    In the first phase the model learns to see: each image has one description, which names every item. In the second
    phase it learns to look things up: descriptions are rare, and most questions take two steps to answer.
    """

    num_images: int = 16
    num_conversations: int = 5  # per image, in the first phase
    num_later_conversations: int = 20  # per image, in the second phase
    num_described_batches: int = 2000  # length of the first phase
    num_groups: int = 4

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        if min(self.num_images, self.num_conversations, self.num_groups) < 1:
            raise ValueError("a batch needs at least one image, conversation and group")


class ConversationEncoder:
    """Encodes conversations as token ids, exactly as serving does."""

    def __init__(self, config: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
        self._builder = PromptBuilder(config, tokenizer, ChatTemplate(CHAT_TEMPLATE))
        (self._end,) = config.language.eos_token_ids
        before, _, _ = self._builder.build_segments([_user_message("", with_image=True)])
        assert isinstance(before, TextSegment)
        self.before_image = before.token_ids  # the same for every conversation

    def encode(self, conversation: Conversation) -> tuple[list[int], list[int]]:
        """Return the token ids after the image, and their targets.

        The target of a token is the next token where that belongs to an answer, else IGNORED.
        """
        messages: list[ChatMessage] = []
        token_ids: list[int] = []
        targets: list[int] = []
        for turn in conversation.turns:
            messages.append(_user_message(turn.question, with_image=not messages))
            # As in serving, each prompt is built anew from all messages so far.
            *_, after_image = self._builder.build_segments(messages)
            assert isinstance(after_image, TextSegment)
            answer = [*self._builder.encode_text(turn.answer), self._end]
            targets += [IGNORED] * (len(after_image.token_ids) - len(token_ids) - 1)
            token_ids = [*after_image.token_ids, *answer]
            targets += [*answer, IGNORED]
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
        return token_ids, targets


class Batches(Dataset[Batch]):
    """All batches of a run, indexed by step."""

    def __init__(self, config: ResamplerModelConfig, tokenizer: Tokenizer, mix: BatchConfig, seeds: range) -> None:
        self.config = config
        self.encoder = ConversationEncoder(config, tokenizer)
        self.mix = mix
        self.seeds = seeds
        self.processor = open_image_processor(config)

    def __len__(self) -> int:
        return len(self.seeds) // self.mix.num_images

    def __getitem__(self, step: int) -> Batch:
        """Draw the images of a step and make their conversations.

        No image appears in two steps.
        """
        first = step * self.mix.num_images
        scenes = {seed: make_scene(seed) for seed in self.seeds[first : first + self.mix.num_images]}
        pixels = np.stack([self.processor.to_pixels(draw(scene)) for scene in scenes.values()])
        encoded = [
            (image, *self.encoder.encode(conversation))
            for image, (seed, scene) in enumerate(scenes.items())
            for conversation in self._converse(step, scene, random.Random(seed))
        ]
        seen = torch.tensor([labels(scene) for scene in scenes.values()])
        return Batch(torch.from_numpy(pixels), seen, list(_group(encoded, self.mix.num_groups)))

    def _converse(self, step: int, scene: Scene, rng: random.Random) -> Iterator[Conversation]:
        if step < self.mix.num_described_batches:
            yield ask(scene, rng, rng.choice(LANGUAGES), "description")
            for _ in range(self.mix.num_conversations - 1):
                yield ask(scene, rng, rng.choice(LANGUAGES), rng.choice(TOPICS))
        else:
            for _ in range(self.mix.num_later_conversations):
                yield ask(scene, rng, rng.choice(LANGUAGES), rng.choice(LATER_TOPICS))


def _user_message(text: str, *, with_image: bool) -> ChatMessage:
    content: list[TextPart | ImagePart] = [{"type": "text", "text": text}]
    return {"role": "user", "content": [{"type": "image"}, *content] if with_image else content}


def _group(encoded: Sequence[tuple[int, list[int], list[int]]], num_groups: int) -> Iterator[Group]:
    """Group conversations by length and right-pad each group."""
    by_length = sorted(encoded, key=lambda one: len(one[1]))
    size = -(-len(by_length) // num_groups)
    for start in range(0, len(by_length), size):
        members = by_length[start : start + size]
        length = len(members[-1][1])
        yield Group(
            image_N=torch.tensor([image for image, _, _ in members]),
            token_ids_NL=torch.tensor([ids + [PADDING] * (length - len(ids)) for _, ids, _ in members]),
            targets_NL=torch.tensor([targets + [IGNORED] * (length - len(targets)) for _, _, targets in members]),
        )
