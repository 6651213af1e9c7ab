"""The training loss, and attention with a shared image."""

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from checkpoint.families import ResamplerModelConfig
from demo.attribute_heads import AttributeHeads
from demo.batches import IGNORED, BatchConfig, Batches
from demo.learner import Learner
from demo.scenes import TRAINING_SEEDS
from language_service.model.attention import causal_attend


@pytest.fixture(params=["small_model", "small_direct_model"])
def model(request: pytest.FixtureRequest) -> ResamplerModelConfig:
    """Return each variant of the model."""
    found: ResamplerModelConfig = request.getfixturevalue(request.param)
    return found


def test_sharing_the_image_gives_the_same_loss(model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    """Compare with separate conversations, each with its own image."""
    batches = Batches(model, tokenizer, BatchConfig(num_images=2, num_conversations=3, num_groups=2), TRAINING_SEEDS)
    batch = batches[0]
    torch.manual_seed(0)
    learner = Learner(model, batches.encoder.before_image)
    with torch.no_grad():
        found = learner(batch)
        visual_BKD = learner.vision(batch.pixels_B3SS)
        losses, right = [], []
        for group in batch.groups:
            for image, token_ids_L, targets_L in zip(group.image_N, group.token_ids_NL, group.targets_NL, strict=True):
                before = learner.language.embed(learner.before_image)
                said = learner.language.embed(token_ids_L)
                alone = torch.cat([before, learner.language.embed_visual(visual_BKD[image]), said])
                hidden = learner.language(alone, torch.arange(len(alone)), causal_attend(1, len(alone)))
                logits = learner.language.logits(hidden[-len(said) :])
                taught = targets_L != IGNORED
                losses.append(functional.cross_entropy(logits[taught], targets_L[taught], reduction="none"))
                right.append(bool((logits.argmax(-1) == targets_L)[taught].all()))
    torch.testing.assert_close(found.loss, torch.cat(losses).mean())
    assert torch.cat(found.right).tolist() == right


def test_the_answers_alone_train_both_halves(model: ResamplerModelConfig, tokenizer: Tokenizer) -> None:
    """The vision half must learn without attribute heads, too."""
    batches = Batches(model, tokenizer, BatchConfig(num_images=2, num_conversations=2), TRAINING_SEEDS)
    learner = Learner(model, batches.encoder.before_image)
    learner(batches[0]).loss.backward()
    for name, parameter in learner.named_parameters():
        if name.startswith("attribute_heads."):
            assert parameter.grad is None
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_a_resamplers_tokens_are_shared_among_the_thirds_in_equal_parts(small_model: ResamplerModelConfig) -> None:
    thirds = AttributeHeads(small_model).third_K
    assert thirds.bincount().tolist() == [11, 11, 10]


def test_a_patch_as_a_token_describes_the_third_it_lies_in(small_direct_model: ResamplerModelConfig) -> None:
    """The same thirds as those of the patch head."""
    rows = AttributeHeads(small_direct_model).third_K.view(14, 14)
    assert rows[0].tolist() == [0] * 5 + [1] * 5 + [2] * 4
    assert (rows == rows[0]).all()
