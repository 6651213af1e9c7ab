"""Log lines as JSON, TLS certificates, and single handlers on a real server."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from chassis.logs import configure_logging
from tests.serving import serve

__all__ = ["serve"]


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """Log as JSON, and yield a function that gives the lines so far."""
    stderr, root = io.StringIO(), logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(sys, "stderr", stderr)
    configure_logging("test", "json", "debug")
    yield lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]
    logging.captureWarnings(False)
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


@dataclass(frozen=True)
class Certificates:
    """PEM files: one authority, a server certificate for localhost and a client certificate, and a stranger's."""

    ca: Path
    server: tuple[Path, Path]
    client: tuple[Path, Path]
    other_ca: Path
    stranger: tuple[Path, Path]


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("tls")
    ca, other = _authority(folder, "ca"), _authority(folder, "other")
    return Certificates(
        ca=ca[0],
        server=_signed(folder, "server", ca),
        client=_signed(folder, "client", ca),
        other_ca=other[0],
        stranger=_signed(folder, "stranger", other),
    )


def _authority(folder: Path, name: str) -> tuple[Path, Path]:
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    _openssl("req", "-x509", *_NEW_KEY, "-keyout", key, "-out", cert, "-subj", f"/CN={name}", "-days", "2")
    return cert, key


def _signed(folder: Path, name: str, authority: tuple[Path, Path]) -> tuple[Path, Path]:
    cert, key, request, names = (folder / f"{name}.{ending}" for ending in ("pem", "key", "csr", "ext"))
    names.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
    signing = ("-CA", authority[0], "-CAkey", authority[1], "-CAcreateserial", "-days", "2", "-extfile", names)
    _openssl("x509", "-req", "-in", request, "-out", cert, *signing)
    return cert, key


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
