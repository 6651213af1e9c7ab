"""The commands of the README work as printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tandem.stack.stack import Stack

REPOSITORY = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def example(words: str) -> str:
    """Return the only code block that contains these words."""
    [block] = [block for block in re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL) if words in block]
    return str(block)


README = (REPOSITORY / "README.md").read_text()


def typed(block: str, *, address: str = "", models: Path | None = None) -> str:
    """Run a block in a shell and return its output.

    The environment, address and folder of the README are replaced by those of the test.
    """
    script = (
        block.replace(".venv/bin/", f"{BIN}/").replace("127.0.0.1:50050", address).replace("/tmp/models", str(models))
    )
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        encoding="utf-8",
        cwd=REPOSITORY,
        env={**os.environ, "TANDEM_ADDRESS": address},
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_question_from_the_terminal(stack: Stack) -> None:
    block = "".join(line for line in example("tandem ask").splitlines(keepends=True) if not line.startswith("make"))
    assert "tiny-v1.0.0 (default)" in typed(block, address=stack.address)


def test_a_question_from_python(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(REPOSITORY)
    exec(example("import tandem").replace("127.0.0.1:50050", stack.address), {})
    assert "Timings(" in capsys.readouterr().out


def test_a_question_by_reflection(stack: Stack) -> None:
    shown = typed(example("buf curl"), address=stack.address)
    assert "tandem.v1.Gateway/Generate" in shown
    assert '"finishReason"' in shown


@pytest.mark.slow
def test_checkpoint_commands(tmp_path: Path) -> None:
    """Lists the full-size preset, makes and verifies a tiny checkpoint."""
    shown = typed(example("tandem checkpoint inspect"), models=tmp_path)
    assert f"made {tmp_path}/tiny-v1.0.0" in shown.replace("\n", "")
