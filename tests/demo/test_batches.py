"""Training batches: prompts, targets, images and groups."""

import random

import numpy as np
import torch
from tokenizers import Tokenizer

from checkpoint.families import ResamplerModelConfig
from checkpoint.tokenizer import CHAT_TEMPLATE
from demo.batches import IGNORED, BatchConfig, Batches, ConversationEncoder
from demo.drawing import draw
from demo.questions import Conversation, ask
from demo.scenes import TRAINING_SEEDS, make_scene
from processing.chat_template import ChatTemplate
from processing.image_processors import open_image_processor
from processing.prompt import PromptBuilder, TextSegment

MIX = BatchConfig(num_images=3, num_conversations=4, num_groups=2)


def two_turns() -> Conversation:
    return ask(make_scene(3), random.Random(3), "english", "two turns")


def test_training_prompts_equal_serving_prompts(small_model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    """Training ids equal the gateway's prompt for the second question."""
    conversation = two_turns()
    first, second = conversation.turns
    builder = PromptBuilder(small_model, tokenizer, ChatTemplate(CHAT_TEMPLATE))
    before, _, after = builder.build_segments(
        [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": first.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": first.answer}]},
            {"role": "user", "content": [{"type": "text", "text": second.question}]},
        ]
    )
    assert isinstance(before, TextSegment)
    assert isinstance(after, TextSegment)
    encoder = ConversationEncoder(small_model, tokenizer)
    token_ids, _ = encoder.encode(conversation)
    assert encoder.before_image == before.token_ids
    assert tuple(token_ids[: len(after.token_ids)]) == after.token_ids


def test_targets_are_the_answers_and_their_end_tokens(small_model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    conversation = two_turns()
    token_ids, targets = ConversationEncoder(small_model, tokenizer).encode(conversation)
    assert len(token_ids) == len(targets)
    learned = [target for target in targets if target != IGNORED]
    answers = "".join(f"{turn.answer}<|im_end|>" for turn in conversation.turns)
    assert tokenizer.decode(learned, skip_special_tokens=False) == answers
    # Each target is the next token id.
    assert all(target in (IGNORED, following) for target, following in zip(targets, token_ids[1:], strict=False))


def test_a_step_is_reproducible_and_repeats_no_image(small_model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    batches = Batches(small_model, tokenizer, MIX, TRAINING_SEEDS)
    first, again, second = batches[0], batches[0], batches[1]
    assert torch.equal(first.pixels_B3SS, again.pixels_B3SS)
    assert all(torch.equal(a.token_ids_NL, b.token_ids_NL) for a, b in zip(first.groups, again.groups, strict=True))
    expected = open_image_processor(small_model).to_pixels(draw(make_scene(TRAINING_SEEDS[MIX.num_images])))
    assert np.array_equal(second.pixels_B3SS[0].numpy(), expected)


def test_every_conversation_is_in_exactly_one_group(small_model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    batch = Batches(small_model, tokenizer, MIX, TRAINING_SEEDS)[0]
    images = torch.cat([group.image_N for group in batch.groups])
    assert sorted(images.tolist()) == sorted(list(range(MIX.num_images)) * MIX.num_conversations)
    lengths = [group.token_ids_NL.shape[1] for group in batch.groups]
    assert lengths == sorted(lengths)
