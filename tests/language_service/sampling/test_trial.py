"""A trial compilation stops costly constraints, wherever the library is installed."""

import json
import sys

import pytest
from llguidance import LLMatcher

from language_service.sampling.grammar import _compiles_in_time
from tests.language_service.sampling.test_grammar import PATTERNS


def test_a_trial_finds_the_library_where_this_process_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as in PYTHONPATH, which an isolated interpreter ignores.

    A trial that cannot import the library would let everything pass.
    """
    monkeypatch.setattr(sys, "executable", getattr(sys, "_base_executable", sys.executable))
    costly = json.dumps({"allOf": PATTERNS})
    schema = LLMatcher.grammar_from_json_schema(costly, overrides={"whitespace_flexible": False})
    assert not _compiles_in_time(schema)
