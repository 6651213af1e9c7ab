"""A process that cannot start says why in its last line.

Kubernetes takes that line as the termination message of the pod.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
TAG, OTHER = "tandem-demo-v1.1.0", "tandem-demo-v1.0.0"
MAX_MESSAGE_BYTES = 2048  # of a termination message that Kubernetes takes from the log

MODELS = ("--models", "models")
STAGE, GATEWAY = (*MODELS, "--tags", TAG), (*MODELS, "--release", TAG)
CASES = {
    "unknown tag": (
        "vision_service",
        ("--models", "models", "--tags", "demo-v9.0.0"),
        "UNKNOWN_TAG",
        f"it has {OTHER}",
    ),
    "empty volume": ("language_service", ("--models", "/nowhere", "--tags", TAG), "UNKNOWN_TAG", "path or mount"),
    "no memory": ("language_service", (*STAGE, "--kv-cache-bytes", "999"), "NO_MEMORY", "has no room for one block"),
    "halves": (
        "gateway",
        (*MODELS, "--release", f"{OTHER},{TAG}"),
        "RELEASE_MISMATCH",
        "a pair that fits",
    ),
    "no keys": ("gateway", (*GATEWAY, "--keys", "/nowhere/keys.toml"), "BAD_KEY_FILE", "cannot be read"),
}


def last_line(module: str, *flags: str) -> str:
    """Return the last line of a process that must fail."""
    command = [sys.executable, "-m", module, "--listen", "127.0.0.1:0", *flags]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=100)
    assert ended.returncode not in (0, -9)
    line = ended.stderr.splitlines()[-1]
    assert len(line.encode()) <= MAX_MESSAGE_BYTES
    return line


@pytest.mark.parametrize(("module", "flags", "reason", "text"), CASES.values(), ids=CASES)
def test_the_last_line_has_the_reason_and_the_remedy(
    module: str, flags: tuple[str, ...], reason: str, text: str
) -> None:
    line = json.loads(last_line(module, "--log-format", "json", *flags))
    assert (line["event"], line["reason"]) == ("cannot start", reason)
    assert text in line["error"]


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((*GATEWAY, "--tls-cert", "/nowhere/tls.crt"), "--tls-cert (TANDEM_GATEWAY_TLS_CERT): the file cannot be read"),
        (MODELS, "--release (TANDEM_GATEWAY_RELEASE): this setting is required"),
    ],
)
def test_a_wrong_setting_is_one_line_with_its_variable(flags: tuple[str, ...], text: str) -> None:
    assert text in last_line("gateway", *flags)
