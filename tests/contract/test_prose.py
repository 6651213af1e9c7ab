"""Docstrings and comments are plain: short summaries and the field's words."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.contract.import_graph import REPOSITORY, sources

MAX_SUMMARY_WORDS = 10
MAX_MODULE_SUMMARY_WORDS = 12

# Marks of long, winding sentences. The limits are occurrences per 1,000 words of prose.
VAGUE_WORDS = re.compile(r"\b(?:what|who)(?:ever)?\b", re.IGNORECASE)
SEMICOLONS = re.compile(";")
MAX_IN_TREE = 2.0
MAX_IN_FILE = 6.0
MIN_FILE_WORDS = 150  # shorter files have no meaningful rate

# Words that are not the field's, with the words to write instead in prose and names.
REPLACEMENTS = {
    r"\bg[ia]ves? way": "preempt",
    r"\bpictures?\b": "image",
    r"\bwhoever\b": "client, caller or operator",
    r"\bunder way\b": "in flight",
    r"\bhousekeeping\b": "the name of the task",
    r"\bkeeper\b": "the name of the task",
}
# The demo model was trained with the word 'picture'. This file lists all words.
EXEMPT = (REPOSITORY / "demo" / "samples.py", Path(__file__))

Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Docstring:
    """A docstring and its place."""

    line: int
    summary: str
    text: str
    max_summary_words: int


def test_summaries_are_short_sentences() -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)}:{docstring.line}: {docstring.summary}"
        for path in sources()
        for docstring in docstrings(text_of(path))
        if not is_short_sentence(docstring)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("pattern", [VAGUE_WORDS, SEMICOLONS], ids=["what and who", "semicolons"])
def test_vague_words_and_semicolons_are_rare(pattern: re.Pattern[str]) -> None:
    texts = {path: prose(text_of(path)) for path in sources()}
    too_many = {
        str(path.relative_to(REPOSITORY)): round(rate(pattern, text), 1)
        for path, text in texts.items()
        if len(text.split()) > MIN_FILE_WORDS and rate(pattern, text) > MAX_IN_FILE
    }
    assert not too_many, f"per 1,000 words of prose: {too_many}"
    assert rate(pattern, "\n".join(texts.values())) < MAX_IN_TREE


@pytest.mark.parametrize("word", REPLACEMENTS)
def test_the_fields_words_are_used(word: str) -> None:
    found = {
        str(path.relative_to(REPOSITORY)): matches
        for path in sources()
        if path not in EXEMPT and (matches := re.findall(f".*{word}.*", words(text_of(path)), re.IGNORECASE))
    }
    assert not found, f"write {REPLACEMENTS[word]!r}: {found}"


def test_the_rules_find_an_offender() -> None:
    """Otherwise a broken rule would pass every file."""
    source = 'def f():\n    """Return what\n    a; b."""\n    return 1  # who\n'
    (docstring,) = docstrings(source)
    assert not is_short_sentence(docstring)
    assert not is_short_sentence(Docstring(1, "one " * 11 + ".", "", MAX_SUMMARY_WORDS))
    assert is_short_sentence(Docstring(1, "One two.", "", MAX_SUMMARY_WORDS))
    text = prose(source)
    assert text.split() == ["Return", "what", "a;", "b.", "who"]
    assert (rate(VAGUE_WORDS, text), rate(SEMICOLONS, text)) == (400, 200)
    assert "House Keeper" in words("class _HouseKeeper: ...\n")


@cache
def text_of(path: Path) -> str:
    """Return the text of a file."""
    return path.read_text(encoding="utf-8")


@cache
def docstrings(source: str) -> tuple[Docstring, ...]:
    """Return the docstrings of a file."""
    return tuple(_docstrings(source))


def _docstrings(source: str) -> Iterator[Docstring]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, Documented) and (text := ast.get_docstring(node)) is not None:
            limit = MAX_MODULE_SUMMARY_WORDS if isinstance(node, ast.Module) else MAX_SUMMARY_WORDS
            yield Docstring(getattr(node, "lineno", 1), text.split("\n")[0], text, limit)


def is_short_sentence(docstring: Docstring) -> bool:
    num_words = len(re.sub(r"\[[^]]*\]", "", docstring.summary).split())  # a shape is no word
    return num_words <= docstring.max_summary_words and docstring.summary.endswith(".")


@cache
def prose(source: str) -> str:
    """Return the docstrings and comments of a file."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = [token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT]
    return "\n".join([*(docstring.text for docstring in docstrings(source)), *comments])


@cache
def words(source: str) -> str:
    """Return prose and names of a file, as words."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    names = {token.string for token in tokens if token.type == tokenize.NAME}
    parts = (re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name).replace("_", " ") for name in sorted(names))
    return "\n".join([prose(source), *parts])


def rate(pattern: re.Pattern[str], text: str) -> float:
    """Return the occurrences of a pattern per 1,000 words."""
    return 1000 * len(pattern.findall(text)) / max(1, len(text.split()))
