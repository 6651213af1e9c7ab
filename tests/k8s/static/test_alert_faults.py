"""Each alert fires when its fault is made on running services.

A real Prometheus scrapes them. The rules are those of `k8s/components/monitoring/alerts.yaml`, with every time divided
by 20: a window of five minutes is one of 15 seconds here, with about as many scrapes. Series and faults are real.
test_alerts.py tests the times.
"""

import itertools
import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import tandem
from tandem.client import Rollouts
from tandem.errors import TandemError
from tests.end_to_end.cluster import image
from tests.end_to_end.rollout_world import plan
from tests.gateway.redis_server import RedisServer
from tests.k8s.load import Load
from tests.k8s.static.conftest import Prometheus, scraping
from tests.k8s.static.fleet import Fleet
from tests.k8s.static.manifests import REPOSITORY, alerts

pytestmark = [pytest.mark.k8s, pytest.mark.slow, pytest.mark.timeout(300)]

FASTER = 20
STABLE, OTHER = "tandem-demo-v1.1.0", "tandem-demo-v1.0.0"
MODELS = REPOSITORY / "models"
STORE = ("--models", str(MODELS))
NUMBERS = itertools.count(10**6)  # of new images
_SECONDS = {"s": 1, "m": 60, "h": 3600}
# An overload that the gateway refuses needs more streams than it answers at once.
LIMITS = ("--max-running", "40", "--max-waiting", "4")
# The alerts that each fault fires. Some fire further ones, too.
FIRES = {
    "a killed service": ("TandemServiceDown", "TandemReplicaDown", "TandemRequestsFail", "TandemImagesFail"),
    "a killed gateway": ("TandemHttpRequestsFail",),
    "restarts": ("TandemRestarts",),
    "overload": ("TandemLanguageQueueLong", "TandemKvCacheFull", "TandemFirstTokenSlow", "TandemRequestsRefused"),
    "a starved vision pod": ("TandemVisionQueueSlow",),
    "failing steps": ("TandemLanguageStepsFail",),
    "Redis gone": ("TandemSharedCacheDown", "TandemRolloutStoreDown", "TandemRolloutGuardSilent"),
    "halves that do not fit": ("TandemVisualTokensCrossed",),
    "a worse canary": ("TandemRolledBack", "TandemCanaryAnswersWorse"),
}


def shortened(duration: str) -> str:
    """Return a duration of Prometheus, divided."""
    number, unit = re.fullmatch(r"(\d+)([smh])", duration).groups()  # type: ignore[union-attr]
    return f"{int(number) * _SECONDS[unit] * 1000 // FASTER}ms"


def faster_rules() -> list[dict[str, Any]]:
    """Return the alerting rules with shorter times."""
    return [
        {
            **rule,
            "expr": re.sub(r"\[(\w+)\]", lambda window: f"[{shortened(window[1])}]", rule["expr"]),
            "for": shortened(rule["for"]),
        }
        for rule in alerts()
    ]


class World:
    """The services with Redis, and a Prometheus with the rules."""

    def __init__(self, fleet: Fleet, redis: RedisServer, prometheus: Prometheus, broken: Path) -> None:
        self.fleet = fleet
        self.redis = redis
        self.prometheus = prometheus
        self.broken = broken  # steps of language fail while this file exists

    @property
    def gateway(self) -> str:
        return self.fleet.address("gateway")

    def load(self, *, streams: int = 12, max_tokens: int = 8) -> Load:
        """Ask for a block, often about new images."""
        return Load(self.gateway, "", streams=streams, max_tokens=max_tokens)

    def expect(self, fault: str, *, timeout_s: float = 120) -> None:
        """Wait until all alerts of a fault fire."""
        end_s = time.monotonic() + timeout_s
        missing = set(FIRES[fault])
        while missing := missing - self.prometheus.firing():
            assert time.monotonic() < end_s, f"not firing: {missing}, but {self.prometheus.firing()}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("faults")
    broken = folder / "broken"
    with pytest.MonkeyPatch.context() as environment, RedisServer(folder) as redis, Fleet() as fleet:
        environment.setenv("TANDEM_TEST_BROKEN", str(broken))
        fleet.start("vision", "vision_service", [*STORE, "--tags", f"{STABLE},{OTHER}"])
        small = ("--max-running", "4", "--kv-cache-bytes", "600000")
        fleet.start("language", "tests.k8s.static.broken_language", [*STORE, "--tags", f"{STABLE},{OTHER}", *small])
        stages = ("--vision", fleet.address("vision"), "--language", fleet.address("language"))
        shared = ("--shared-cache-url", redis.url, "--rollout-redis", redis.url)
        fleet.start("gateway", "gateway", [*STORE, "--release", STABLE, *stages, *shared, *LIMITS])
        fleet.start("http", "http_gateway", ["--gateway", fleet.address("gateway")])
        targets = {name: fleet.metrics_address(name) for name in ("gateway", "http", "vision", "language")}
        with scraping(targets, folder, rules=faster_rules()) as prometheus:
            yield World(fleet, redis, prometheus, broken)


@pytest.fixture
def world(running: World) -> World:
    """Return the services, once they answer and no alert fires."""
    end_s = time.monotonic() + 120
    while not answers(running.gateway) or running.prometheus.firing():
        assert time.monotonic() < end_s, f"no answer, or still firing: {running.prometheus.firing()}"
        time.sleep(1)
    return running


def answers(address: str) -> bool:
    with suppress(TandemError), tandem.Client(address, timeout_s=10) as client:
        # About a new image, since the shared cache is tried again only then.
        client.ask("Is it red?", images=[image(next(NUMBERS))], max_tokens=4)
        return True
    return False


def test_every_alert_has_a_fault() -> None:
    assert {name for names in FIRES.values() for name in names} == {rule["alert"] for rule in alerts()}


def test_a_service_that_is_killed(world: World) -> None:
    with world.load():
        world.fleet.kill("vision")
        world.expect("a killed service")
    world.fleet.restart("vision")


def test_a_gateway_that_is_killed(world: World) -> None:
    """The HTTP door answers that it reaches none."""
    ending = threading.Event()

    def ask() -> None:
        body = json.dumps({"model": "default", "messages": [{"role": "user", "content": "Is it red?"}]}).encode()
        url = f"http://{world.fleet.address('http')}/v1/chat/completions"
        while not ending.wait(0.2):
            request = urllib.request.Request(url, body, {"content-type": "application/json"})
            with suppress(OSError):
                urllib.request.urlopen(request, timeout=30).close()

    world.fleet.kill("gateway")
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            world.expect("a killed gateway")
        finally:
            ending.set()
        asking.result()
    world.fleet.restart("gateway")


def test_a_service_that_restarts_again_and_again(world: World) -> None:
    for _ in range(3):
        world.fleet.restart("gateway")
        time.sleep(2)  # a restart needs a scrape
    world.expect("restarts")


def test_more_long_answers_than_a_small_language_pod_can_give(world: World) -> None:
    with world.load(streams=64, max_tokens=200):
        world.expect("overload", timeout_s=180)


def test_a_vision_pod_that_gets_too_little_processor_time(world: World) -> None:
    """It stands still most of the time."""
    ending = threading.Event()

    def starve() -> None:
        while not ending.is_set():
            world.fleet.freeze("vision")
            time.sleep(0.9)
            world.fleet.thaw("vision")
            time.sleep(0.1)

    def ask() -> None:
        with tandem.Client(world.gateway, timeout_s=60) as client:
            while not ending.is_set():
                new = [image(next(NUMBERS)) for _ in range(4)]
                with suppress(TandemError):  # the gateway may refuse some
                    client.ask("Is it red?", images=new, max_tokens=1)

    with ThreadPoolExecutor(17) as pool:
        running = [pool.submit(starve), *(pool.submit(ask) for _ in range(16))]
        try:
            world.expect("a starved vision pod")
        finally:
            ending.set()
        for one in running:
            one.result()


def test_steps_that_fail(world: World) -> None:
    with world.load():
        world.broken.touch()
        world.expect("failing steps")
        world.broken.unlink()


def test_redis_that_is_gone(world: World) -> None:
    world.redis.kill()
    with world.load() as load:
        world.expect("Redis gone")
    assert load.summary.failed == {}
    world.redis.start()


def test_a_gateway_that_pairs_halves_which_do_not_fit(world: World, tmp_path: Path) -> None:
    """Its last check refuses the visual tokens."""
    shutil.copytree(MODELS / STABLE, tmp_path / STABLE)  # a store with the vision half would refuse the pair at start
    stages = ("--vision", world.fleet.address("vision"), "--language", world.fleet.address("language"))
    release = ("--models", str(tmp_path), "--release", f"{OTHER},{STABLE}")
    with Fleet() as fleet:
        fleet.start("gateway", "tests.k8s.static.broken_gateway", [*release, *stages])
        with scraping({"gateway": fleet.metrics_address("gateway")}, tmp_path, rules=faster_rules()) as prometheus:
            with tandem.Client(fleet.address("gateway"), timeout_s=30) as client, pytest.raises(TandemError) as caught:
                client.ask("Is it red?", images=[REPOSITORY / "demo" / "images" / "bag-and-bottle.png"], max_tokens=4)
            assert caught.value.reason == "ENCODERS_CROSSED"
            World(fleet, world.redis, prometheus, world.broken).expect("halves that do not fit", timeout_s=30)


def test_a_canary_that_answers_worse(world: World) -> None:
    """The older demo release answers fewer of the probes."""
    worse = plan(OTHER, (10, 100))
    worse.guard.max_quality_drop = 0.02
    with Rollouts(world.gateway) as rollouts:
        rollouts.set(worse)
    world.expect("a worse canary")
