"""The official JavaScript client."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tandem.stack import Stack
from tests.http_gateway.clients.conftest import BAG, KEY, Tools, base_url

pytestmark = pytest.mark.http

SCRIPT = Path(__file__).parent / "openai.mjs"


def test_every_check_of_the_client_passes(demo: Stack, tools: Tools) -> None:
    node = shutil.which("node")
    assert node, "node is missing: run these tests by `make test-http`"
    assert "TANDEM_NODE" in os.environ, "run these tests by `make test-http`, which brings the client"
    done = subprocess.run(
        [node, SCRIPT, base_url(demo), BAG, base_url(tools.stack), KEY],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        timeout=100,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout.splitlines()[-1] == "a stream that is left"
