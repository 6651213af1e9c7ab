"""The snippets of docs/http.md run as printed, and its tables are complete."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from http_gateway.schemas.chat import ChatRequest
from http_gateway.wire.problems import REFUSED
from tandem.stack import Stack
from tests.http_gateway.clients.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "http.md").read_text()
ANSWER = re.compile(r"\bbag\b|\byes\b|\bno\b", re.IGNORECASE)


def snippet(language: str, words: str) -> str:
    """Return the only block that contains these words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if words in block]
    return str(block)


def run(command: list[str], block: str, stack: Stack, **environment: str) -> str:
    """Run a snippet against the door of a stack."""
    done = subprocess.run(
        [*command, block.replace("127.0.0.1:8080", stack.address_of("http"))],
        capture_output=True,
        encoding="utf-8",
        cwd=REPOSITORY,
        env={**os.environ, "NO_PROXY": "127.0.0.1", **environment},
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def table(title: str) -> set[str]:
    """Return the fields in the first column of a table."""
    rows = PAGE.partition(f"\n| field | {title}|\n")[2].partition("\n\n")[0].splitlines()[1:]
    assert rows
    return {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}


def test_the_tables_name_every_field() -> None:
    is_ignored = {
        name: "x-ignored" in (field.json_schema_extra or {})  # type: ignore[operator]
        for name, field in ChatRequest.model_fields.items()
    }
    assert table("") == {name for name, ignored in is_ignored.items() if not ignored}
    assert table("ignored, because ") == {name for name, ignored in is_ignored.items() if ignored}
    assert table("refused, because ") == REFUSED.keys()


@pytest.mark.slow
def test_openai_python(demo: Stack) -> None:
    assert ANSWER.search(run([sys.executable, "-c"], snippet("python", "from openai"), demo))


@pytest.mark.http
@pytest.mark.parametrize("words", ["base64 -w0", "v1/files"])
def test_curl(demo: Stack, words: str) -> None:
    assert ANSWER.search(run(["bash", "-euo", "pipefail", "-c"], snippet("bash", words), demo))


@pytest.mark.http
def test_langchain(demo: Stack) -> None:
    assert ANSWER.search(run([sys.executable, "-c"], snippet("python", "langchain_openai"), demo))


@pytest.mark.http
def test_fetch(demo: Stack, tmp_path: Path) -> None:
    node = shutil.which("node")
    assert node, "node is missing: run these tests by `make test-http`"
    assert run([node, "--input-type=module", "--eval"], snippet("js", "fetch("), demo).strip()
