"""Tokens that a constraint forces, and the masks after them."""

import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from checkpoint.tokenizer import byte_tokenizer
from language_service.sampling.grammar import Grammar, GrammarCompiler
from language_service.sampling.options import Constraint
from tests.language_service.following import settle

VOCAB, EOS = 264, 2
TOKENIZER = byte_tokenizer()
SCHEMA = {
    "properties": {"a": {"type": "boolean"}, "b": {"const": "ü"}, "c": {"type": "string", "maxLength": 3}},
    "required": ["b", "c"],
    "additionalProperties": False,
}


@pytest.fixture
def compiler() -> Iterator[GrammarCompiler]:
    compiler = GrammarCompiler(TOKENIZER.to_str(), vocab_size=VOCAB, eos_token_ids=[EOS])
    yield compiler
    compiler.close()


def accept(grammar: Grammar, token_ids: Sequence[int]) -> None:
    """Accept tokens and wait for the next mask."""
    for token in token_ids:
        grammar.accept(token)
    settle([grammar])
    assert grammar.error is None


def allowed(grammar: Grammar, vocab_size: int = VOCAB) -> list[int]:
    return np.flatnonzero(grammar.mask(vocab_size)).tolist() if grammar.is_ready else []


@pytest.mark.parametrize(
    "constraint",
    [
        Constraint("regex", "ab(c|d)[0-9]!"),
        Constraint("regex", "(äöü){3}x*"),
        Constraint("choices", '["yes", "yesterday", "never"]'),
        Constraint("json_schema", json.dumps(SCHEMA)),
    ],
)
async def test_masks_after_forced_tokens_are_those_of_one_token_at_a_time(
    compiler: GrammarCompiler, constraint: Constraint
) -> None:
    """Where there is a choice, each of several is followed."""
    num_forced = 0
    for seed in range(6):
        rng = np.random.default_rng(seed)
        jumping, slow = await compiler.compile(constraint), await compiler.compile(constraint)
        for _ in range(60):
            forced = list(jumping.forced)
            for token in forced:
                assert jumping.forced_token == token
                assert allowed(jumping) == allowed(slow) == [token]
                jumping.accept(token)
                accept(slow, [token])
            num_forced += len(forced)
            if slow.is_complete:
                break
            assert allowed(jumping) == allowed(slow)
            token = int(rng.choice(allowed(slow)))
            accept(jumping, [token])
            accept(slow, [token])
            assert jumping.is_complete == slow.is_complete
            if slow.is_complete or token == EOS:
                break
    assert num_forced > 0


async def test_a_forced_text_of_which_a_part_has_other_tokens() -> None:
    """The next mask corrects the drafts."""
    vocabulary = {token: index for index, token in enumerate(("<|endoftext|>", "a", "b", "c", "cc", "x"))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("c", "c")]))
    # After "ba", but not after "a" alone, two c's are one token.
    split = pre_tokenizers.Split(Regex("(?<=ba)c+|."), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    b, a, cc = tokenizer.encode("bacc").ids
    assert cc == vocabulary["cc"]
    compiler = GrammarCompiler(tokenizer.to_str(), vocab_size=len(vocabulary), eos_token_ids=[0])
    try:
        grammar = await compiler.compile(Constraint("regex", "xbacc"))
        assert grammar.forced == (vocabulary["x"], b, a)  # known with the first mask
        accept(grammar, [vocabulary["x"]])
        text = [vocabulary["x"]]
        for _ in range(4):
            if grammar.is_complete:
                break
            assert grammar.forced_token is not None
            assert allowed(grammar, len(vocabulary)) == [grammar.forced_token]
            text.append(grammar.forced_token)
            accept(grammar, [grammar.forced_token])
        assert grammar.is_complete
        assert tokenizer.decode(text) == "xbacc"
    finally:
        compiler.close()


async def test_a_long_forced_text_comes_in_parts(compiler: GrammarCompiler) -> None:
    """So that no message and no step is too long."""
    text = "0123456789" * 12
    grammar = await compiler.compile(Constraint("choices", json.dumps([text])))
    parts = []
    while not grammar.is_complete:
        parts.append(list(grammar.forced))
        accept(grammar, parts[-1])
    assert TOKENIZER.decode([token for part in parts for token in part]) == text
    assert [len(part) for part in parts] == [16] * 7 + [8]
