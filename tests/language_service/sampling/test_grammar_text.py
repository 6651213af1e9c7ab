"""Constraints that spell special tokens, and what is said of bad ones."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from chassis.errors import InvalidArgument
from checkpoint.tokenizer import SPECIAL_TOKENS, byte_tokenizer
from language_service.sampling.grammar import GrammarCompiler
from language_service.sampling.grammar_text import SCHEMA_FORMATS, SCHEMA_KEYWORDS
from language_service.sampling.options import Constraint, read_options
from tandem.v1 import sampling_pb2
from tests.language_service.following import settle

Kind = Any
SPELLED = "a<|im_end|>b"


def merging_tokenizer() -> Tokenizer:
    """Return a BPE with merges.

    Its special tokens are not in the vocabulary of its model, as in Qwen's.
    """
    vocabulary = {token: index for index, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("<", "|"), ("|", ">"), ("i", "m"), ("e", "n"), ("en", "d"), ("im", "_"), ("im_", "end")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    return tokenizer


TOKENIZERS = {"bytes": byte_tokenizer(), "merges": merging_tokenizer()}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


@pytest.fixture
async def compiler(tokenizer: Tokenizer) -> AsyncIterator[GrammarCompiler]:
    compiler = GrammarCompiler(
        tokenizer.to_str(),
        vocab_size=tokenizer.get_vocab_size() + 9,
        eos_token_ids=[tokenizer.get_vocab()["<|im_end|>"]],
    )
    yield compiler
    compiler.close()


@pytest.mark.parametrize("kind", ["regex", "grammar", "choices", "json_schema"])
async def test_an_added_token_that_is_text_may_spell_its_part_of_a_constraint(kind: Kind) -> None:
    """Models call tools with such tokens."""
    tokenizer = TOKENIZERS["merges"]
    text = {"regex": "<tool_call>a", "grammar": 'start: "<tool_call>a"'}.get(kind, json.dumps(["<tool_call>a"]))
    compiler = GrammarCompiler(tokenizer.to_str(), vocab_size=tokenizer.get_vocab_size(), eos_token_ids=[0])
    try:
        schema = json.dumps({"enum": ["<tool_call>a"]})
        tokens = await follow(compiler, Constraint(kind, schema if kind == "json_schema" else text), 300)
    finally:
        compiler.close()
    assert tokenizer.get_vocab()["<tool_call>"] in tokens


async def follow(compiler: GrammarCompiler, constraint: Constraint, vocab_size: int) -> list[int]:
    """Return an answer of the last allowed token each."""
    grammar = await compiler.compile(constraint)
    tokens: list[int] = []
    while not grammar.is_complete:
        tokens.append(int(grammar.mask(vocab_size).nonzero()[0][-1]))
        grammar.accept(tokens[-1])
        settle([grammar])
        assert grammar.error is None
    return tokens


@pytest.mark.parametrize(
    ("kind", "text", "answer"),
    [
        ("choices", json.dumps([SPELLED]), SPELLED),
        ("choices", json.dumps([SPELLED + "<|endoftext|>"]), SPELLED + "<|endoftext|>"),
        ("regex", re.escape(SPELLED), SPELLED),
        ("regex", r"<\|(im_end|aa)\|>{2}", "<|im_end|>>"),
        ("json_schema", json.dumps({"enum": [SPELLED]}), f'"{SPELLED}"'),
        ("json_schema", json.dumps({"const": {"k": SPELLED}}), f'{{"k":"{SPELLED}"}}'),
        (
            "json_schema",
            json.dumps({"properties": {SPELLED: {"const": 1}}, "required": [SPELLED], "additionalProperties": False}),
            f'{{"{SPELLED}":1}}',
        ),
        ("json_schema", json.dumps({"type": "string", "pattern": r"^<\|im_end\|>$"}), '"<|im_end|>"'),
        ("grammar", f'start: "{SPELLED}"', SPELLED),
        ("choices", json.dumps(["😀 ja\n"]), "😀 ja\n"),
    ],
)
async def test_a_special_token_in_a_constraint_is_spelled_out(
    compiler: GrammarCompiler, tokenizer: Tokenizer, kind: Kind, text: str, answer: str
) -> None:
    vocab_size = tokenizer.get_vocab_size() + 9
    tokens = await follow(compiler, Constraint(kind, text), vocab_size)
    specials = {tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    assert specials.isdisjoint(tokens)
    written = tokenizer.decode(tokens)
    assert (json.loads(written) if kind == "json_schema" else written) == (
        json.loads(answer) if kind == "json_schema" else answer
    )


async def test_an_answer_still_ends_with_the_end_of_sequence_token(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    grammar = await compiler.compile(Constraint("regex", "a*"))
    allowed = set(grammar.mask(tokenizer.get_vocab_size() + 9).nonzero()[0].tolist())
    assert tokenizer.token_to_id("<|im_end|>") in allowed
    assert tokenizer.token_to_id("<|endoftext|>") not in allowed


async def test_an_added_token_that_is_not_special_is_text(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    """Models write tool calls with it."""
    if (token := tokenizer.token_to_id("<tool_call>")) is None:
        pytest.skip("this tokenizer has none")
    tokens = await follow(compiler, Constraint("choices", '["<tool_call>"]'), tokenizer.get_vocab_size() + 9)
    assert tokens == [token]


PROBLEMS: dict[str, tuple[Kind, str, list[str]]] = {
    "back-reference": ("regex", r"(a)\1", ["back", r"'\\1' at character 4", "without look-around"]),
    "after a class": ("regex", r"\d\d\n(a)\1", [r"'\\1' at character 10"]),
    "the second of two": ("regex", r"\\1(a)\1", [r"'\\1' at character 7"]),
    "look-ahead": ("regex", "b(?=a)", ["look-around", "at character 2"]),
    "word boundary": ("regex", r"ab\b", [r"'\\b' at character 3", "without look-around"]),
    "unclosed": ("regex", "x(a", ["unclosed group", "'(' at character 2"]),
    "no text": ("regex", r"a[^\s\S]", ["allows no text", "empty set of characters"]),
    "keyword": (
        "json_schema",
        json.dumps({"properties": {"not": {"type": "array", "items": {"not": {}}}}}),
        ["'not' at #/properties/not/items", "patternProperties"],
    ),
    "pattern": (
        "json_schema",
        json.dumps({"anyOf": [{"type": "null"}, {"type": "string", "pattern": r"(a)\1"}]}),
        ["backreferences", "at #/anyOf/1"],
    ),
    "no text in a schema": ("json_schema", json.dumps({"type": "string", "pattern": r"[^\s\S]"}), ["allows no text"]),
    "format": (
        "json_schema",
        json.dumps({"items": {"type": "string", "format": "color"}}),
        ["'color' at #/items", "date-time"],
    ),
    "contradiction": ("json_schema", json.dumps({"minLength": 5, "maxLength": 3, "type": "string"}), ["minLength (5)"]),
    "reference": ("json_schema", json.dumps({"$ref": "http://127.0.0.1:1/x"}), ["another document", "$defs"]),
    "not JSON": ("json_schema", '{"a": }', ["line 1 column 7"]),
    "oneOf in a grammar": (
        "grammar",
        'start: %json {"oneOf": [{"type": "integer"}, {"type": "number"}]}',
        ["'oneOf'", "use 'anyOf'"],
    ),
    "unknown rule": ("grammar", "start: a\na: b", ["line 2, character 4", 'unknown name: "b"']),
}


@pytest.mark.parametrize("tokenizer", [byte_tokenizer()], ids=["bytes"])
@pytest.mark.parametrize("name", PROBLEMS)
async def test_a_problem_has_cause_place_and_what_is_supported(compiler: GrammarCompiler, name: str) -> None:
    kind, text, parts = PROBLEMS[name]
    with pytest.raises(InvalidArgument) as caught:
        await compiler.compile(Constraint(kind, text))
    message = caught.value.message
    assert all(part in message for part in parts), message
    # Nothing that only the library's callers could set, no internals, and one line.
    assert not re.search(r"coerce_one_of|127\.0\.0\.1|Parser|grammars|\n|<state>|regex parse error", message), message


@pytest.mark.parametrize("tokenizer", [byte_tokenizer()], ids=["bytes"])
@pytest.mark.parametrize(
    "branches",
    [
        [{"type": "integer", "minimum": 10, "maximum": 12}, {"type": "string", "pattern": "^[ab]$"}],
        [{"type": "integer", "maximum": 3, "minimum": 1}, {"type": "integer", "minimum": 5, "maximum": 6}],
        [{"properties": {"k": {"const": k}}, "required": ["k"], "additionalProperties": False} for k in ("box", "bag")],
        [{"type": "integer", "minimum": 1, "maximum": 2}, {"type": "integer", "minimum": 2, "maximum": 3}],
    ],
)
async def test_one_of_is_taken_as_any_of(compiler: GrammarCompiler, branches: list[dict[str, Any]]) -> None:
    answers = []
    for keyword in ("oneOf", "anyOf"):
        properties = {"v": {keyword: branches}}
        schema = {"properties": properties, "required": ["v"], "additionalProperties": False}
        answers.append(await follow(compiler, Constraint("json_schema", json.dumps(schema)), 264))
    assert answers[0] == answers[1]


SAMPLES: dict[str, Any] = {
    "type": "string", "enum": [1], "const": 1, "anyOf": [{}], "oneOf": [{}], "allOf": [{}], "$ref": "#/$defs/a",
    "properties": {"a": {}}, "required": ["a"], "additionalProperties": False, "patternProperties": {"^a": {}},
    "minProperties": 1, "maxProperties": 1, "items": {}, "prefixItems": [{}], "additionalItems": False, "minItems": 1,
    "maxItems": 1, "minLength": 1, "maxLength": 1, "pattern": "a", "format": "date", "minimum": 1, "maximum": 1,
    "exclusiveMinimum": 1, "exclusiveMaximum": 1, "multipleOf": 2,
}  # fmt: skip
UNSUPPORTED = (
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames",
    "dependentRequired", "dependentSchemas", "unevaluatedItems", "unevaluatedProperties", "$dynamicRef",
)  # fmt: skip


@pytest.mark.parametrize("tokenizer", [byte_tokenizer()], ids=["bytes"])
async def test_the_named_keywords_and_formats_are_the_supported_ones(compiler: GrammarCompiler) -> None:
    assert set(SAMPLES) == set(SCHEMA_KEYWORDS)
    for keyword, value in SAMPLES.items():
        schema = {keyword: value, "$defs": {"a": {}}}
        (await compiler.compile(Constraint("json_schema", json.dumps(schema)))).close()
    for name in SCHEMA_FORMATS:
        (await compiler.compile(Constraint("json_schema", json.dumps({"type": "string", "format": name})))).close()
    for keyword in UNSUPPORTED:
        with pytest.raises(InvalidArgument, match=re.escape(repr(keyword))):
            await compiler.compile(Constraint("json_schema", json.dumps({keyword: {}})))


@pytest.mark.parametrize("tokenizer", [byte_tokenizer()], ids=["bytes"])
async def test_the_size_of_a_schema_is_counted_in_utf8(compiler: GrammarCompiler) -> None:
    """With escapes, this one would be twice as long."""
    schema = json.dumps({"enum": ["颜色" * 100 + str(number) for number in range(107)]}, ensure_ascii=False)
    assert 64000 < len(schema.encode()) <= 65536 < len(json.dumps(schema))
    options = read_options(sampling_pb2.SamplingOptions(json_schema=schema), vocab_size=264)
    assert options.constraint is not None
    (await compiler.compile(options.constraint)).close()
    with pytest.raises(InvalidArgument, match="must have 1 to 65536 bytes"):
        read_options(sampling_pb2.SamplingOptions(json_schema=json.dumps(json.loads(schema))), vocab_size=264)
