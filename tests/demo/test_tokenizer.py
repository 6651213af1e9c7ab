"""The demo's tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from checkpoint.presets import RESAMPLER_PRESETS
from checkpoint.tokenizer import SPECIAL_TOKENS
from demo.chinese import CHINESE
from demo.tokenizer import sentences, train_tokenizer


def test_special_tokens_have_the_ids_of_every_checkpoint(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(len(SPECIAL_TOKENS)))


def test_the_vocabulary_fits_the_demo_model(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() <= RESAMPLER_PRESETS["demo"].language.vocab_size


def test_training_is_reproducible(tokenizer: Tokenizer) -> None:
    assert train_tokenizer().to_str() == tokenizer.to_str()


@pytest.mark.parametrize(
    "word", ["真皮", *CHINESE.by_colour["colour"].values(), "帆布", "金属", "左边", "商品", "颜色"]
)
def test_a_common_compound_is_one_token(tokenizer: Tokenizer, word: str) -> None:
    assert len(tokenizer.encode(word).ids) == 1


@pytest.mark.parametrize("kind", CHINESE.by_kind["kind"].values())
def test_a_compound_stays_one_token_within_a_sentence(tokenizer: Tokenizer, kind: str) -> None:
    """A token such as 真皮包 would merge material and kind."""
    ids = tokenizer.encode(f"左边是一个红色的真皮{kind}。").ids
    assert [tokenizer.decode([token]) for token in ids][-3:] == ["真皮", kind, "。"]


@given(st.text())
def test_any_text_survives_a_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_demo_sentences_need_few_tokens(tokenizer: Tokenizer) -> None:
    """About one token per word, where bytes would need four."""
    texts = [text for text, _ in zip(sentences(), range(2000), strict=False)]
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(len(tokenizer.encode(text).ids) for text in texts)
    assert num_bytes / num_tokens > 3.5
