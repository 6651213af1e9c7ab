"""Fixtures: a running stack and a Prometheus that scrapes it."""

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
import yaml

import tandem
from tandem.stack import Stack, StackConfig
from tests.k8s.static.manifests import REPOSITORY, tool

IMAGES = sorted((REPOSITORY / "demo" / "images").glob("*.png"))


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def query(self, query: str) -> list[dict[str, Any]]:
        """Return the samples of a query.

        Raises:
            HTTPError: the query is wrong.
        """
        parameters = urllib.parse.urlencode({"query": query.replace("$__rate_interval", "1m")})
        with urllib.request.urlopen(f"{self._url}/query?{parameters}", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    def query_range(self, query: str) -> list[dict[str, Any]]:
        """Return the series of a query over two minutes."""
        end_s = time.time()
        parameters = urllib.parse.urlencode(
            {"query": query.replace("$__rate_interval", "15s"), "start": end_s - 120, "end": end_s, "step": 2}
        )
        with urllib.request.urlopen(f"{self._url}/query_range?{parameters}", timeout=30) as answer:
            found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return found

    def wait_for(self, query: str, timeout_s: float = 60) -> None:
        """Wait until a query has a sample."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            with suppress(OSError):  # until it listens
                if self.query(query):
                    return
            time.sleep(0.5)
        raise AssertionError(f"nothing after {timeout_s} s: {query}")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    config = StackConfig(
        models=REPOSITORY / "models",
        release="tandem-demo-v1.1.0",
        language_flags=("--kv-cache-bytes", str(64 * 2**20)),
    )
    with Stack(config) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes the stack, after one question."""
    folder = tmp_path_factory.mktemp("prometheus")
    targets = [
        {
            "targets": [stack.metrics_address(name)],
            # As the PodMonitor sets them.
            "labels": {"service": name, "pod": f"{name}-0", "namespace": "tandem", "track": "stable"},
        }
        for name in ("gateway", "vision", "language")
    ]
    scraping = {"job_name": "tandem", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": targets}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump({"scrape_configs": [scraping]}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen([tool("prometheus"), *flags, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
    try:
        server = Prometheus(port)
        server.wait_for('count(up{service=~"gateway|vision|language"} == 1) == 3')
        with tandem.Client(stack.address) as client:
            client.ask("Is the bag made of leather?", images=IMAGES[:1], max_tokens=16)
        server.wait_for("sum(tandem_gateway_requests_total) > 0 and sum(rate(tandem_vision_batch_size_count[1m])) >= 0")
        time.sleep(3)  # a rate needs two scrapes
        yield server
    finally:
        process.terminate()
        process.wait()
        log.close()
