"""Judge an answer by the rule of its probe.

A probe names one judge: `exact`, `one_of`, `contains`, `regex`, `json` or `grader`. All but the last are plain
functions of the answer. White space around an answer never counts.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic_core import SchemaError, SchemaValidator, core_schema

from chassis.errors import InvalidArgument

MAX_EXPRESSION_CHARACTERS = 2000
MAX_TOLERANCE = 1e12


@dataclass(frozen=True, slots=True)
class Exact:
    """Right if the answer is one of some texts."""

    texts: tuple[str, ...]

    def is_right(self, answer: str) -> bool:
        """Return whether an answer is right."""
        return answer.strip() in self.texts


@dataclass(frozen=True, slots=True)
class Contains:
    """Right if the answer has every one of some texts."""

    texts: tuple[str, ...]

    def is_right(self, answer: str) -> bool:
        """Return whether an answer is right."""
        return all(text in answer for text in self.texts)


@dataclass(frozen=True, slots=True)
class Regex:
    """Right if an expression matches somewhere in the answer.

    Rust's `regex` matches in time linear in the answer, so no expression can hang. It has no look-around and no
    back-references.
    """

    matcher: SchemaValidator

    def is_right(self, answer: str) -> bool:
        """Return whether an answer is right."""
        return self.matcher.isinstance_python(answer.strip())


@dataclass(frozen=True, slots=True)
class Json:
    """Right if the answer is JSON of equal value."""

    value: Any
    tolerance: float  # highest difference of two numbers

    def is_right(self, answer: str) -> bool:
        """Return whether an answer is right."""
        try:
            found = json.loads(answer, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):  # too long numbers are ValueErrors, too
            return False
        return _is_equal(self.value, found, self.tolerance)


@dataclass(frozen=True, slots=True)
class Graded:
    """Right if the operator's grader says so."""

    rubric: str  # tells the grader how to judge


Judge = Exact | Contains | Regex | Json | Graded


def parse_judge(fields: Mapping[str, Any]) -> Judge:
    """Return the judge that a probe names.

    Args:
        fields: the name with its rule, such as {'one_of': ['red', 'Red']}. `json` may have a `tolerance`.

    Raises:
        InvalidArgument: reason 'UNKNOWN_JUDGE', 'BAD_JUDGE' or 'BAD_EXPRESSION'.
    """
    names = fields.keys() - {"tolerance"}
    if len(names) != 1 or not names <= _PARSERS.keys():
        raise InvalidArgument(f"the judge must be one of {', '.join(_PARSERS)}", reason="UNKNOWN_JUDGE")
    (name,) = names
    if "tolerance" in fields and name != "json":
        raise InvalidArgument("only the judge json takes a tolerance", reason="BAD_JUDGE")
    return _PARSERS[name](fields[name], fields.get("tolerance", 0.0))


def _parse_exact(rule: Any, _tolerance: Any) -> Judge:
    return Exact((_text(rule).strip(),))


def _parse_one_of(rule: Any, _tolerance: Any) -> Judge:
    return Exact(tuple(text.strip() for text in _texts(rule)))


def _parse_contains(rule: Any, _tolerance: Any) -> Judge:
    return Contains(_texts([rule] if isinstance(rule, str) else rule))


def _parse_regex(rule: Any, _tolerance: Any) -> Judge:
    expression = _text(rule)
    if len(expression) > MAX_EXPRESSION_CHARACTERS:
        raise InvalidArgument(
            f"the expression has more than {MAX_EXPRESSION_CHARACTERS} characters", reason="BAD_EXPRESSION"
        )
    try:
        schema = core_schema.str_schema(pattern=expression, regex_engine="rust-regex")
        return Regex(SchemaValidator(schema))
    except SchemaError:
        raise InvalidArgument(
            "the expression does not compile (look-around and back-references are not supported)",
            reason="BAD_EXPRESSION",
        ) from None


def _parse_json(rule: Any, tolerance: Any) -> Judge:
    is_number = isinstance(tolerance, int | float) and not isinstance(tolerance, bool)
    if not is_number or not 0 <= tolerance <= MAX_TOLERANCE:
        raise InvalidArgument("the tolerance must be a number, 0 or more", reason="BAD_JUDGE")
    return Json(rule, float(tolerance))


def _parse_grader(rule: Any, _tolerance: Any) -> Judge:
    return Graded(_text(rule))


_PARSERS: dict[str, Callable[[Any, Any], Judge]] = {
    "exact": _parse_exact,
    "one_of": _parse_one_of,
    "contains": _parse_contains,
    "regex": _parse_regex,
    "json": _parse_json,
    "grader": _parse_grader,
}


def _text(rule: Any) -> str:
    if not isinstance(rule, str) or not rule.strip():
        raise InvalidArgument("the judge needs a text that is not empty", reason="BAD_JUDGE")
    return rule


def _texts(rule: Any) -> tuple[str, ...]:
    if not isinstance(rule, list) or not rule:
        raise InvalidArgument("the judge needs a list of texts", reason="BAD_JUDGE")
    return tuple(map(_text, rule))


def _is_equal(one: Any, other: Any, tolerance: float) -> bool:
    """Compare two values, numbers with a tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_is_equal(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if _is_number(one) and _is_number(other):
        return one == other or _is_close(one, other, tolerance)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_close(one: float, other: float, tolerance: float) -> bool:
    try:
        return math.isclose(one, other, rel_tol=0.0, abs_tol=tolerance)
    except OverflowError:  # an integer beyond every float
        return False


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
