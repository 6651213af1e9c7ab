"""The judges of answers to probes."""

import time
from typing import Any

import pytest

from checkpoint.probes import Graded
from tests.checkpoint.probes.files import probe


@pytest.mark.parametrize(
    ("judge", "answer", "is_right"),
    [
        ({"exact": "A bag."}, " A bag.\n", True),
        ({"exact": "A bag."}, "A bag", False),
        ({"one_of": ["Yes.", "Yes"]}, "Yes", True),
        ({"one_of": ["Yes.", "Yes"]}, "yes", False),
        ({"contains": "包"}, "这是一个包。", True),
        ({"contains": ["red", "bag"]}, "a red bag", True),
        ({"contains": ["red", "bag"]}, "a red hat", False),
        ({"regex": r"\d+ bags?"}, "There are 12 bags.", True),
        ({"regex": r"^\d+$"}, "12", True),
        ({"regex": r"^\d+$"}, "12 bags", False),
        ({"regex": r"红|blue"}, "它是红色的。", True),
        ({"json": {"colour": "red", "count": 2}}, '{"count": 2.0, "colour": "red"}', True),
        ({"json": {"count": 2}}, '{"count": 2, "colour": "red"}', False),
        ({"json": [1.0, 2.0], "tolerance": 0.1}, "[1.05, 2]", True),
        ({"json": [1.0, 2.0], "tolerance": 0.1}, "[1.15, 2]", False),
        ({"json": [1, 2]}, "[1]", False),
        ({"json": True}, "1", False),
        ({"json": None}, "null", True),
        ({"json": 1}, "one", False),
        ({"json": 1}, "NaN", False),
        ({"json": 1, "tolerance": 5}, "1" + "0" * 400, False),
        ({"json": 1}, "1" * 100_000, False),
        ({"json": 1}, "[" * 200_000, False),
        ({"json": 1}, "", False),
    ],
)
def test_an_answer_is_right_or_wrong(judge: dict[str, Any], answer: str, is_right: bool) -> None:
    found = probe(judge=judge).judge
    assert not isinstance(found, Graded)
    assert found.is_right(answer) is is_right


@pytest.mark.parametrize("expression", ["(a+)+$", "(a|a)*$", "(.*a){25}$", r"^(([a-z])+.)+[A-Z]([a-z])+$"])
def test_a_hostile_expression_cannot_hang(expression: str) -> None:
    """A backtracking engine would need longer than the sun."""
    judge = probe(judge={"regex": expression}).judge
    assert not isinstance(judge, Graded)
    started_s = time.perf_counter()
    judge.is_right("a" * 20_000 + "!")
    assert time.perf_counter() - started_s < 10
