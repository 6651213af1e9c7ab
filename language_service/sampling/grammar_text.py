"""Translate constraints for llguidance, and its errors for callers."""

import json
import re
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llguidance import LLMatcher, grammar_from

from language_service.sampling.grammar_worker import NO_MEMORY, WorkerLimits
from language_service.sampling.options import Constraint

SCHEMA_KEYWORDS = (
    *("type", "enum", "const", "anyOf", "oneOf", "allOf", "$ref"),
    *("properties", "required", "additionalProperties", "patternProperties", "minProperties", "maxProperties"),
    *("items", "prefixItems", "additionalItems", "minItems", "maxItems"),
    *("minLength", "maxLength", "pattern", "format"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
)
SCHEMA_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")

_MAX_PROBLEM_CHARACTERS = 200
_REGEX_SYNTAX = "supported is Rust's regex syntax without look-around, back-references and word boundaries"
_PARSE_ERROR = re.compile(r"regex parse error:\n +(?P<regex>.*)\n +(?P<carets>\^+) *\nerror: (?P<cause>.*)")
_LOOK_AROUND = re.compile(r"lookarounds not supported yet; (?P<kind>\w+) in regex /(?P<regex>.*)/")
_LOOK_AROUNDS = {"Start": "^", "End": "$", "StartLF": "^", "EndLF": "$"}  # within a regex. All others are \b or \B.


def grammar_of(constraint: Constraint) -> str:
    """Return a constraint as a grammar of llguidance.

    Raises:
        ValueError: the constraint is not JSON.
    """
    if constraint.kind == "json_schema":
        # With flexible whitespace, an unsure model could generate whitespace forever. Two branches of a 'oneOf' that
        # fit the same value cannot be told apart while the answer is written, so it is taken as 'anyOf'.
        options: Any = {"whitespace_flexible": False, "coerce_one_of": True}
        return LLMatcher.grammar_from_json_schema(constraint.text, overrides=options)
    if constraint.kind == "choices":
        return grammar_from("choice", constraint.text)
    return grammar_from("regex" if constraint.kind == "regex" else "lark", constraint.text)


def without_special_texts(tokenizer_json: str) -> str:
    """Give special tokens names that no text contains.

    So a text that spells a special token consists of ordinary tokens, as in prompts.
    """
    tokenizer = json.loads(tokenizer_json)
    key = secrets.token_hex(16)
    names = {one["content"]: f"{key}-{one['id']}" for one in tokenizer.get("added_tokens", ()) if one.get("special")}
    for one in tokenizer.get("added_tokens", ()):
        one["content"] = names.get(one["content"], one["content"])
    model = tokenizer["model"]
    if isinstance(model.get("vocab"), dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in model["vocab"].items()}
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    return json.dumps(tokenizer, ensure_ascii=False)


def explain(constraint: Constraint, error: str) -> str:
    """Return cause, place and remedy of a bad constraint.

    Args:
        constraint: that the library refused.
        error: its error.
    """
    schema = _schema(constraint)
    if (found := _PARSE_ERROR.search(error)) or (found := _LOOK_AROUND.search(error)):
        source = constraint.text if schema is None else found["regex"]
        excerpt, cause = _cause(found)
        place = _position(found, source, excerpt) + _place(schema, "pattern", found["regex"])
        return f"is not valid: {cause}{place}, {_REGEX_SYNTAX}"
    line = error.strip().partition("\n")[0].partition("; following special tokens")[0]
    line = line[:_MAX_PROBLEM_CHARACTERS].rstrip(".")
    if line.startswith("NoExtension") or "Regex is empty" in line:
        return "allows no text, because a part of it, such as an empty set of characters, matches nothing"
    if found := re.match(r'Unimplemented keys: \["([^"]+)"', line):
        return f"has the keyword {found[1]!r}{_place(schema, found[1])}, supported are: {', '.join(SCHEMA_KEYWORDS)}"
    if found := re.match(r"Unknown format: (.*)", line):
        place = _place(schema, "format", found[1])
        return f"has the format {found[1]!r}{place}, supported are: {', '.join(SCHEMA_FORMATS)}"
    if "oneOf constraints are not supported" in line:
        return "has a 'oneOf' with branches that may fit the same value, so use 'anyOf'"
    if line.startswith("Resource "):
        return f"refers to another document{_place(schema, '$ref')}, so copy that into its '$defs'"
    line = line.removeprefix("Unsatisfiable schema: ")
    if found := re.match(r"at (\d+)\((\d+)\): (.*)", line):
        return f"is not valid at line {found[1]}, character {found[2]}: {found[3]}"
    return f"is not valid: {line}"


def why_it_stopped(error: str) -> str:
    """Return why an answer cannot go on.

    Args:
        error: of the library.
    """
    line = error.strip().partition("\n")[0][:_MAX_PROBLEM_CHARACTERS].rstrip(".")
    if "too complex" in line.lower() or "TooComplex" in line or "too many" in line:
        return f"became too complex ({line}), so make it simpler"
    if "doesn't satisfy the grammar" in line or line.startswith("NoExtension") or "not allowed" in line:
        return "allows no token here that the other options allow, so relax min_tokens, logit_bias or the constraint"
    return f"failed ({line})"


def why_it_ended(status: int, limits: WorkerLimits, *, is_compiled: bool) -> str | None:
    """Return why a worker ended, from its exit status.

    That is a negative signal, or what it returned. None if the end is not the fault of the constraint.
    """
    if status == -signal.SIGPROF:
        if is_compiled:
            return f"takes more than {limits.token_s:g} s of processor time for a token, so make it simpler"
        return f"takes more than {limits.compile_s:g} s of processor time to compile, so make it simpler"
    # Python says that there is no memory. The library aborts, or uses a stack that cannot grow.
    if status in (NO_MEMORY, -signal.SIGABRT, -signal.SIGSEGV, -signal.SIGBUS):
        return f"takes more than {limits.memory_bytes >> 20} MiB of memory, so make it simpler"
    return None


def _schema(constraint: Constraint) -> Any:
    try:
        return json.loads(constraint.text) if constraint.kind == "json_schema" else None
    except (ValueError, RecursionError):
        return None


def _cause(found: "re.Match[str]") -> tuple[str, str]:
    """Return the text at fault and the cause."""
    if "kind" in found.groupdict():
        return _LOOK_AROUNDS.get(found["kind"], r"\b"), "word boundaries and anchors within it are not supported"
    column = found.start("carets") - found.string.rindex("\n", 0, found.start("carets"))
    indent = found.start("regex") - found.string.rindex("\n", 0, found.start("regex"))
    return found["regex"][column - indent :][: len(found["carets"])], found["cause"].rstrip(".")


def _position(found: "re.Match[str]", source: str, excerpt: str) -> str:
    """Return where the excerpt is in the source.

    The library rewrites some classes of characters, so columns of its error may not fit.
    """
    num_before = 0
    if "carets" in found.groupdict():
        column = found.start("carets") - found.string.rindex("\n", 0, found.start("carets"))
        indent = found.start("regex") - found.string.rindex("\n", 0, found.start("regex"))
        num_before = found["regex"][: column - indent].count(excerpt)
    place = -1
    for _ in range(num_before + 1):
        place = source.find(excerpt, place + 1)
    return f" ({excerpt!r} at character {place + 1})" if place >= 0 else f" ({excerpt!r})"


def _place(schema: Any, key: str, value: str | None = None) -> str:
    """Return the first place of a keyword."""
    for pointer, found, held in _keywords(schema):
        if found == key and value in (None, held):
            return f" at {pointer}"
    return ""


def _keywords(schema: Any, pointer: str = "#") -> Iterator[tuple[str, str, Any]]:
    """Yield place, keyword and value of all subschemas."""
    if isinstance(schema, Mapping):
        for key, value in schema.items():
            yield pointer or "#", key, value
            if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, Mapping):
                for name, child in value.items():
                    if key == "patternProperties":
                        yield f"{pointer}/{key}", "pattern", name
                    yield from _keywords(child, f"{pointer}/{key}/{name}")
            elif key not in ("enum", "const", "default", "examples"):
                yield from _keywords(value, f"{pointer}/{key}")
    elif isinstance(schema, Sequence) and not isinstance(schema, str):
        for index, child in enumerate(schema):
            yield from _keywords(child, f"{pointer}/{index}")
