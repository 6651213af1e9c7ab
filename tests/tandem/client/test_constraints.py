"""Constrained answers of an untrained model, through all services."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tandem import Client, GenerateOptions
from tandem.errors import InvalidArgument
from tandem.stack.stack import Stack

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "tags": {"type": "array", "items": {"enum": ["big", "small"]}, "maxItems": 3},
    },
    "required": ["shape", "count", "tags"],
    "additionalProperties": False,
}


@pytest.fixture
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.address, timeout_s=60) as client:
        yield client


def fits_schema(text: str) -> bool:
    answer = json.loads(text)
    return (
        list(answer) == ["shape", "count", "tags"]
        and answer["shape"] in ("circle", "square")
        and 0 <= answer["count"] <= 20
        and len(answer["tags"]) <= 3
        and set(answer["tags"]) <= {"big", "small"}
    )


def test_constrained_and_free_answers_share_a_batch(client: Client, image_files: tuple[Path, Path]) -> None:
    def ask(seed: int, **options: Any) -> str:
        kind: GenerateOptions = {"max_tokens": 120, "temperature": 1.5, "seed": seed, **options}  # type: ignore[typeddict-item]
        answer = client.generate("What is it?", images=[image_files[seed % 2]], **kind)
        list(answer)
        if options:
            assert answer.final.finish_reason == "stop"
        return answer.final.text

    with ThreadPoolExecutor(8) as pool:
        schemas = [pool.submit(ask, seed, json_schema=SCHEMA) for seed in range(6)]
        regexes = [pool.submit(ask, seed, regex="[A-Z]{3}-[0-9]{4}") for seed in range(6)]
        grammars = [pool.submit(ask, seed, grammar='start: "[" ("a" | "b")+ "]"') for seed in range(6)]
        choices = [pool.submit(ask, seed, choices=["ja", "nein", "弄不清"]) for seed in range(6)]
        free = [pool.submit(ask, seed) for seed in range(6)]
    assert all(fits_schema(answer.result()) for answer in schemas)
    assert all(re.fullmatch("[A-Z]{3}-[0-9]{4}", answer.result()) for answer in regexes)
    assert all(re.fullmatch(r"\[[ab]+\]", answer.result()) for answer in grammars)
    assert {answer.result() for answer in choices} <= {"ja", "nein", "弄不清"}
    assert len({answer.result() for answer in free}) == 6


def test_a_bad_constraint_is_named(client: Client) -> None:
    for options, field in (
        ({"json_schema": {"type": "colour"}}, "json_schema"),
        ({"json_schema": "{"}, "json_schema"),
        ({"regex": "("}, "regex"),
        ({"choices": []}, "choices"),
        ({"grammar": "start: unknown"}, "grammar"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            list(client.generate("?", **options))
        assert (caught.value.reason, caught.value.field) == ("BAD_CONSTRAINT", f"sampling.{field}")


def test_only_one_constraint_is_allowed(client: Client) -> None:
    with pytest.raises(TypeError, match="one of choices, grammar, json_schema, regex"):
        client.generate("?", regex="a", choices=["a"])


def test_stop_strings_wait_for_min_tokens(client: Client) -> None:
    """The demo has a token for each byte."""
    for min_tokens, text, count in ((0, "", 4), (3, "", 4), (4, " bag", 8), (12, " bag" * 3, 16)):
        answer = client.ask("?", regex="( bag){20}", stop=[" bag"], min_tokens=min_tokens)
        assert (answer.text, answer.usage.completion_tokens, answer.finish_reason) == (text, count, "stop")


def test_a_constraint_that_spells_a_special_token_is_written_out(client: Client) -> None:
    assert client.ask("?", choices=["a<|im_end|>b"]).text == "a<|im_end|>b"
    assert json.loads(client.ask("?", json_schema={"const": "<|im_end|>"}).text) == "<|im_end|>"


def test_a_costly_constraint_is_refused_with_its_reason(client: Client) -> None:
    # It reaches both limits at nearly the same time.
    with pytest.raises(InvalidArgument, match=r"more than (0\.25 s of processor time|128 MiB of memory)") as caught:
        client.ask("?", regex="(a{1000}){1000}q{1000}")
    assert (caught.value.reason, caught.value.field) == ("BAD_CONSTRAINT", "sampling.regex")
