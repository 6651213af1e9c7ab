"""Judge answers without a known right one, by rules.

An answer breaks a rule if it does not keep the constraint of its request, or if it has one of the operator's refusal
phrases. Two releases that answer one request differently are compared by this.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pydantic_core import SchemaError, SchemaValidator, core_schema

from chassis.errors import FailedPrecondition
from tandem.v1 import sampling_pb2

_MAX_PHRASES = 1000


class AnswerRules:
    """The rules that every answer must keep."""

    def __init__(self, refusals: Sequence[str] = ()) -> None:
        """Take the refusal phrases of the operator, in any case."""
        self._refusals = [phrase.casefold() for phrase in refusals]

    def breaks(self, text: str, sampling: sampling_pb2.SamplingOptions) -> bool:
        """Return whether an answer breaks a rule.

        Args:
            text: the complete answer.
            sampling: the options of its request, with its constraint.
        """
        folded = text.casefold()
        return not self.keeps_constraint(text, sampling) or any(phrase in folded for phrase in self._refusals)

    def keeps_constraint(self, text: str, sampling: sampling_pb2.SamplingOptions) -> bool:
        """Return whether an answer has the form of its constraint.

        An expression that only the language service understands is taken as kept.
        """
        match sampling.WhichOneof("constraint"):
            case "json_schema":
                return _is_json(text)
            case "regex":
                matcher = _matcher(sampling.regex)
                return matcher is None or matcher.isinstance_python(text)
            case "choices":
                return text in sampling.choices.texts
        return True


def read_refusals(path: Path | None) -> list[str]:
    """Read refusal phrases, one a line. None has none.

    Raises:
        FailedPrecondition: reason 'BAD_REFUSALS', the file cannot be read or has too many lines.
    """
    if path is None:
        return []
    try:
        phrases = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise FailedPrecondition(
            "The file of refusal phrases cannot be read as text.", reason="BAD_REFUSALS", where=path
        ) from None
    if len(phrases) > _MAX_PHRASES:
        raise FailedPrecondition(
            f"The file of refusal phrases has more than {_MAX_PHRASES} lines.", reason="BAD_REFUSALS", where=path
        )
    return phrases


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


@lru_cache(maxsize=64)
def _matcher(expression: str) -> SchemaValidator | None:
    r"""Return a matcher of whole texts, in linear time.

    None for an expression that only the language service understands.
    """
    try:
        return SchemaValidator(core_schema.str_schema(pattern=rf"\A(?:{expression})\z", regex_engine="rust-regex"))
    except SchemaError:
        return None
