"""compose.yaml runs with podman-compose.

Its images are those of this repository and of Debian's packages. Grafana has no package in Debian, so its service is
only parsed.
"""

import json
import os
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import tandem
from tests.images.containers import image

pytestmark = [pytest.mark.images, pytest.mark.timeout(400)]

REPOSITORY = Path(__file__).parents[2]
IMAGE = REPOSITORY / "demo" / "images" / "bag-and-bottle.png"
OURS = ("vision", "language", "gateway", "http")
RUNNING = (*OURS, "redis", "prometheus")
_CONFIG = """
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "cni"
network_config_dir = "{networks}"
"""


class Compose:
    """podman-compose with compose.yaml."""

    def __init__(self, folder: Path) -> None:
        """Write podman's configuration into a folder."""
        (folder / "networks").mkdir()
        (folder / "containers.conf").write_text(_CONFIG.format(networks=folder / "networks"))
        self._environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "DISABLE_HC_SYSTEMD": "true",  # without systemd nobody runs health checks: this test does
            "TAG": tandem.__version__,
            "REDIS_IMAGE": image("redis"),
            "PROMETHEUS_IMAGE": image("prometheus"),
        }
        program = shutil.which("podman-compose", path=f"{REPOSITORY / '.venv-k8s/bin'}:{os.environ['PATH']}")
        assert program, "podman-compose is missing: run tests/k8s/install_tools"
        self._program = program

    def compose(self, *arguments: str) -> str:
        """Run podman-compose and return its output."""
        return self._run(self._program, "--file", str(REPOSITORY / "compose.yaml"), *arguments)

    def podman(self, *arguments: str) -> str:
        """Run podman and return its output."""
        return self._run("podman", *arguments)

    def is_healthy(self, service: str) -> bool:
        """Run the health check of a service once."""
        command = ["podman", "healthcheck", "run", f"tandem_{service}_1"]
        return subprocess.run(command, env=self._environment, capture_output=True).returncode == 0

    def _run(self, *command: str) -> str:
        done = subprocess.run(command, env=self._environment, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Compose:
    return Compose(tmp_path_factory.mktemp("compose"))


@pytest.fixture(scope="module")
def started(compose: Compose) -> Iterator[Compose]:
    """Yield with all services but Grafana running and healthy."""
    try:
        compose.compose("up", "--detach", *RUNNING)
        wait_until(lambda: all(compose.is_healthy(one) for one in OURS), 120)
        yield compose
    finally:
        compose.compose("down", "--volumes")


def wait_until(is_true: Any, within_s: float) -> None:
    end_s = time.monotonic() + within_s
    while not is_true():
        assert time.monotonic() < end_s, f"not within {within_s} s"
        time.sleep(1)


def query(text: str) -> list[dict[str, Any]]:
    url = f"http://127.0.0.1:9090/api/v1/query?{urllib.parse.urlencode({'query': text})}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        return found


def test_grafana_gets_files_that_exist(compose: Compose) -> None:
    parsed = yaml.safe_load(compose.compose("config"))["services"]
    assert set(parsed) == {*RUNNING, "grafana"}
    for volume in parsed["grafana"]["volumes"]:
        source = volume.split(":")[0] if isinstance(volume, str) else volume["source"]
        assert (REPOSITORY / source).is_file(), source


def test_a_question_is_answered_and_its_image_is_in_redis(started: Compose) -> None:
    with tandem.Client("127.0.0.1:50050", timeout_s=60) as client:
        assert client.ask("Is the bag made of leather?", images=[IMAGE], max_tokens=8).text
    assert int(started.podman("exec", "tandem_redis_1", "redis-cli", "dbsize")) >= 1


def test_the_page_and_the_models_are_served(started: Compose) -> None:
    with urllib.request.urlopen("http://127.0.0.1:8080/", timeout=10) as page:
        assert b"<html" in page.read()
    with urllib.request.urlopen("http://127.0.0.1:8080/v1/models", timeout=10) as answer:
        assert "tandem-demo-v1.1.0" in {model["id"] for model in json.load(answer)["data"]}


def test_prometheus_scrapes_all_services(started: Compose) -> None:
    wait_until(lambda: len(query('up{service=~"gateway|http|vision|language"} == 1')) == len(OURS), 60)


def test_the_services_stop_at_once_when_idle(started: Compose) -> None:
    """Only a long answer may delay the stop."""
    begun_s = time.monotonic()
    started.compose("stop", *OURS)
    assert time.monotonic() - begun_s < 60
    for service in OURS:
        assert started.podman("inspect", "--format", "{{.State.ExitCode}}", f"tandem_{service}_1").strip() == "0"
