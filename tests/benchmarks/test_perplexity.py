"""The quality of the demo model with few bits a weight."""

from pathlib import Path

import pytest
import torch

from benchmarks.tools.perplexity import (
    Form,
    Passage,
    Score,
    make_checkpoint,
    our_reader,
    read_passages,
    score,
    transformers_reader,
)

pytestmark = pytest.mark.slow  # several decoders read some dozens of conversations
RELEASE = Path(__file__).parents[2] / "models" / "tandem-demo-v1.1.0"
WORSE_AIMS = {Form("w8a8"): 0.01, Form("w4a16"): 0.03}  # perplexity, relative to bfloat16


@pytest.fixture(scope="module")
def passages() -> list[Passage]:
    return read_passages(RELEASE, 64)


@pytest.fixture(scope="module")
def hard(passages: list[Passage]) -> list[Passage]:
    """Return the text without the images.

    Its answers are hard to guess, so that small errors show.
    """
    return [passage.without_image() for passage in passages]


@pytest.fixture(scope="module")
def exact(hard: list[Passage]) -> Score:
    return score(our_reader(RELEASE), hard)


def test_with_the_image_nearly_every_answer_is_expected(passages: list[Passage], exact: Score) -> None:
    seeing = score(our_reader(RELEASE), passages)
    assert seeing.right >= 0.9
    assert seeing.perplexity < 1.1
    assert exact.perplexity > 2


def test_perplexity_is_that_of_transformers(hard: list[Passage]) -> None:
    ours = score(our_reader(RELEASE), hard[:32])
    theirs = score(transformers_reader(RELEASE, torch.bfloat16), hard[:32])
    assert ours.perplexity == pytest.approx(theirs.perplexity, rel=0.005)


@pytest.mark.parametrize("form", WORSE_AIMS, ids=str)
def test_few_bits_keep_the_perplexity(form: Form, hard: list[Passage], exact: Score, tmp_path: Path) -> None:
    rounded = score(our_reader(make_checkpoint(RELEASE, tmp_path, form, [])), hard)
    assert rounded.perplexity <= exact.perplexity * (1 + WORSE_AIMS[form])
