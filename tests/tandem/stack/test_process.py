"""A service as a child process, and its output."""

import threading
from pathlib import Path

import pytest

from tandem.stack.process import ServiceProcess

# A service that logs a ready line, then more than a pipe holds.
PROGRAM = """
import json
print(json.dumps({"event": "ready", "port": 1}), flush=True)
for number in range(20_000):
    print(json.dumps({"event": "request", "number": number}))
"""


@pytest.fixture
def talkative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "talkative_service.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return "talkative_service"


def test_a_failing_log_callback_does_not_block_the_service(talkative: str) -> None:
    """`tandem up 2>&1 | head` closes the log's pipe."""

    def closed(service: str, line: str) -> None:
        raise BrokenPipeError

    changed = threading.Condition()
    service = ServiceProcess("talkative", talkative, [], closed, changed)
    service.start()
    try:
        with changed:
            assert changed.wait_for(lambda: service.exit_code is not None, timeout=30)
    finally:
        service.kill()
    assert (service.exit_code, service.ready["port"]) == (0, 1)
