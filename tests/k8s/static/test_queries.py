"""A real Prometheus evaluates every query against a running stack."""

import json
import os
import signal
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
from tandem.errors import TandemError
from tandem.stack import Stack, StackConfig
from tests.k8s.static.manifests import MONITORING, REPOSITORY, alerts, files, objects, tool

pytestmark = [pytest.mark.k8s, pytest.mark.timeout(300)]

IMAGE, OTHER_IMAGE = (
    REPOSITORY / "demo" / "images" / name for name in ("bag-and-bottle.png", "umbrellas-and-watch.png")
)


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
            client.ask("Is the bag made of leather?", images=[IMAGE], max_tokens=16)
        server.wait_for("sum(tandem_gateway_requests_total) > 0 and sum(rate(tandem_vision_batch_size_count[1m])) >= 0")
        time.sleep(3)  # a rate needs two scrapes
        yield server
    finally:
        process.terminate()
        process.wait()
        log.close()


def panels() -> Iterator[tuple[str, str]]:
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", target["expr"]


def scalers() -> Iterator[tuple[str, str]]:
    for path in files():
        for one in objects(path.read_text()):
            if one.get("kind") == "ScaledObject":
                for number, trigger in enumerate(one["spec"]["triggers"]):
                    yield f"{path.stem} {number}", trigger["metadata"]["query"]


def test_no_panel_is_empty_after_one_question(prometheus: Prometheus) -> None:
    assert [title for title, query in panels() if not prometheus.query(query)] == []


def test_every_query_of_an_autoscaler_has_one_value(prometheus: Prometheus) -> None:
    assert {name: len(prometheus.query(query)) for name, query in scalers()} == dict.fromkeys(dict(scalers()), 1)


def test_no_alert_holds_on_a_healthy_stack(prometheus: Prometheus) -> None:
    assert [rule["alert"] for rule in alerts() if prometheus.query(rule["expr"])] == []


def test_alerts_hold_when_the_vision_service_is_killed(stack: Stack, prometheus: Prometheus) -> None:
    """The other faults are made from series in test_alerts.py."""
    os.kill(stack.pids["vision"], signal.SIGKILL)
    expressions = {rule["alert"]: rule["expr"] for rule in alerts()}
    with tandem.Client(stack.address) as client:
        for _ in range(3):
            with pytest.raises(TandemError):
                client.ask("Is it red?", images=[OTHER_IMAGE], max_tokens=4)
            time.sleep(2)  # a rate needs a scrape between two failures
    for name in ("TandemServiceDown", "TandemReplicaDown", "TandemRequestsFail"):
        prometheus.wait_for(expressions[name])
