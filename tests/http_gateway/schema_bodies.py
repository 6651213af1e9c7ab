"""Draw JSON that fits a schema of the HTTP door's document.

`hypothesis-jsonschema` uses internals of Hypothesis that are gone. Only the keywords of that document are known here.
"""

import re
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Strategy = st.SearchStrategy[Any]

MAX_OPTIONAL_FIELDS = 5  # of one object: with more of them, most bodies contradict themselves

TEXT = st.text(max_size=30)
ANYTHING: Strategy = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


def bodies(schema: Schema, definitions: dict[str, Schema]) -> Strategy:
    """Return a strategy for values that fit `schema`.

    Args:
        schema: the schema.
        definitions: by the names that its references have.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: bodies(definitions[name], definitions))
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return st.one_of([bodies(one, definitions) for one in schema[keyword]])
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        return _objects(schema, definitions)
    if kind == "array":
        items = bodies(schema.get("items", {}), definitions)
        return st.lists(items, min_size=schema.get("minItems", 0), max_size=min(4, schema.get("maxItems", 4)))
    return _scalars(schema, kind)


def _scalars(schema: Schema, kind: str | None) -> Strategy:
    if kind == "string":
        if "pattern" in schema:
            return st.from_regex(re.compile(schema["pattern"], re.ASCII))
        return st.text(min_size=schema.get("minLength", 0), max_size=min(40, schema.get("maxLength", 40)))
    low, high = schema.get("minimum"), schema.get("maximum")
    kinds: dict[str | None, Strategy] = {
        "integer": st.integers(low, high),
        "number": st.floats(low, high, allow_nan=False, allow_infinity=False),
        "boolean": st.booleans(),
        "null": st.none(),
        None: ANYTHING,
    }
    return kinds[kind]


def _objects(schema: Schema, definitions: dict[str, Schema]) -> Strategy:
    fields: dict[str, Schema] = schema.get("properties", {})
    if not fields:
        names = next(iter(schema.get("patternProperties", {})), None) or schema.get("propertyNames", {}).get("pattern")
        keys = st.from_regex(re.compile(names, re.ASCII)) if names else TEXT
        values = next(iter(schema.get("patternProperties", {}).values()), None) or schema.get("additionalProperties")
        return st.dictionaries(keys, bodies(values, definitions) if isinstance(values, dict) else ANYTHING, max_size=3)
    required = {name: bodies(fields[name], definitions) for name in schema.get("required", ())}
    optional = {name: bodies(one, definitions) for name, one in fields.items() if name not in required}
    if not optional:
        return st.fixed_dictionaries(required)
    return st.sets(st.sampled_from(sorted(optional)), max_size=MAX_OPTIONAL_FIELDS).flatmap(
        lambda names: st.fixed_dictionaries({**required, **{name: optional[name] for name in sorted(names)}})
    )
