"""Fixtures: a running stack and a Prometheus that scrapes it."""

import json
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
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

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        with urllib.request.urlopen(f"{self._url}/alerts", timeout=30) as answer:
            found = json.load(answer)["data"]["alerts"]
        return {one["labels"]["alertname"] for one in found if one["state"] == "firing"}

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
        release="tandem-demo-v1.0.0",
        language_flags=("--kv-cache-bytes", str(64 * 2**20)),
        http_port=0,
    )
    with Stack(config) as running:
        yield running


@contextmanager
def scraping(targets: Mapping[str, str], folder: Path, rules: Sequence[dict[str, Any]] = ()) -> Iterator[Prometheus]:
    """Run a Prometheus that scrapes services each second.

    Args:
        targets: addresses of metrics by service.
        folder: for its files.
        rules: alerting rules.
    """
    # The labels are those that the PodMonitor sets.
    labels = {name: {"service": name, "pod": f"{name}-0", "namespace": "tandem", "track": "stable"} for name in targets}
    configs = [{"targets": [address], "labels": labels[name]} for name, address in targets.items()]
    job = {"job_name": "tandem", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": configs}
    group = {"name": "tandem", "interval": "1s", "rules": list(rules)}
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [group] if rules else []}))
    config = {"scrape_configs": [job], "rule_files": [str(folder / "rules.yaml")]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = [f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([tool("prometheus"), *flags, f"--web.listen-address=127.0.0.1:{port}"], stderr=log)
        try:
            server = Prometheus(port)
            server.wait_for(f"count(up == 1) == {len(targets)}")
            yield server
        finally:
            process.terminate()
            process.wait()


def ask_over_http(address: str) -> None:
    """Ask for one short answer."""
    body = {"messages": [{"role": "user", "content": "Hello?"}], "max_tokens": 4}
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"http://{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["choices"]


@pytest.fixture(scope="module")
def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Yield a Prometheus that scrapes the stack, after two questions."""
    targets = {name: stack.metrics_address(name) for name in ("gateway", "http", "vision", "language")}
    with scraping(targets, tmp_path_factory.mktemp("prometheus")) as server:
        with tandem.Client(stack.address) as client:
            client.ask("Is the bag made of leather?", images=IMAGES[:1], max_tokens=16)
        ask_over_http(stack.address_of("http"))
        server.wait_for("sum(tandem_gateway_requests_total) > 0 and sum(rate(tandem_vision_batch_size_count[1m])) >= 0")
        time.sleep(3)  # a rate needs two scrapes
        yield server
