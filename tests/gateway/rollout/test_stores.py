"""Both stores: compare-and-set, counts and heartbeats."""

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from pydantic import ValidationError

from chassis.errors import FailedPrecondition, Unavailable
from gateway.rollout.policy.controller import begin, start
from gateway.rollout.policy.counts import Counts
from gateway.rollout.policy.state import State
from gateway.rollout.redis_store import HEARTBEAT_TIMEOUT_S, RedisStore
from gateway.rollout.store import FileStore, RolloutStore
from gateway.rollout.stored_format import Document, Heartbeat
from gateway.settings import GatewaySettings
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.plans import STABLE, numbers, plan

PATIENCE_S = 20.0  # for a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["file", "redis"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, server: RedisServer) -> AsyncIterator[RolloutStore]:
    """Return each kind of store, empty."""
    server.client.flushall()
    store = (
        FileStore(tmp_path / "rollout.json")
        if request.param == "file"
        else RedisStore(server.url, timeout_s=PATIENCE_S)
    )
    yield store
    await store.close()


def some_state() -> State:
    return begin(None, plan(), in_force=STABLE, rollout_id="r", now_s=1.5)


async def test_a_store_is_empty_at_first_and_returns_the_document_it_got(store: RolloutStore) -> None:
    assert await store.read() == Document()
    document = Document(version=1, state=start(some_state(), 2.5))
    assert await store.compare_and_set(0, document)
    assert await store.read() == document


async def test_one_gateway_at_a_time_has_a_lease(server: RedisServer) -> None:
    server.client.flushall()
    store = RedisStore(server.url, timeout_s=PATIENCE_S)
    won = await asyncio.gather(*(store.take_lease("r", f"gateway-{number}", 60) for number in range(20)))
    assert sum(won) == 1
    holder = f"gateway-{won.index(True)}"
    assert await store.take_lease("r", holder, 0.2)  # renewed, and shorter
    assert await store.take_lease("other", "somebody", 60)
    async with asyncio.timeout(PATIENCE_S):
        while not await store.take_lease("r", "successor", 60):  # noqa: ASYNC110  (Redis ends it)
            await asyncio.sleep(0.05)
    assert not await store.take_lease("r", holder, 60)
    await store.close()


async def test_exactly_one_of_many_concurrent_writes_replaces_a_document(store: RolloutStore) -> None:
    document = Document(version=1, state=some_state())
    assert sum(await asyncio.gather(*(store.compare_and_set(0, document) for _ in range(20)))) == 1
    assert not await store.compare_and_set(0, document)


async def test_counts_of_one_step_add_up_and_the_next_step_starts_at_zero(store: RolloutStore) -> None:
    one, other = numbers("stable", 30, errors=2), numbers("canary", 7)
    assert (await store.add("r/0", one)).counts == one
    assert (await store.add("r/0", other)).counts == one + other
    assert (await store.add("r/0", Counts())).counts == one + other
    assert (await store.add("r/1", other)).counts == other


async def test_a_gateway_gets_its_own_heartbeat_back(store: RolloutStore) -> None:
    heartbeat = Heartbeat(gateway="a", version=3, in_use=("demo-v1.0.0",))
    assert await store.heartbeat(heartbeat) == [heartbeat]


async def test_two_gateways_share_counts_and_see_each_others_heartbeats(server: RedisServer) -> None:
    server.client.flushall()
    one, other = RedisStore(server.url, timeout_s=PATIENCE_S), RedisStore(server.url, timeout_s=PATIENCE_S)
    counts = numbers("canary", 10)
    await asyncio.gather(*(store.add("r/0", counts) for store in (one, other) for _ in range(25)))
    total = await one.add("r/0", Counts())
    assert total.counts.number("canary", "requests") == 500
    first, second = (Heartbeat(gateway=name, version=1, in_use=()) for name in "ab")
    await one.heartbeat(first)
    assert sorted(await other.heartbeat(second), key=lambda heartbeat: heartbeat.gateway) == [first, second]
    await one.close()
    await other.close()


async def test_stores_with_different_prefixes_share_nothing(server: RedisServer) -> None:
    server.client.flushall()
    one, other = (RedisStore(server.url, prefix=prefix, timeout_s=PATIENCE_S) for prefix in ("tandem", "staging"))
    await one.compare_and_set(0, Document(version=1, state=some_state()))
    await one.add("r/0", numbers("stable", 1))
    await one.heartbeat(Heartbeat(gateway="a", version=1, in_use=()))
    assert await other.read() == Document()
    assert (await other.add("r/0", Counts())).counts == Counts()
    assert [beat.gateway for beat in await other.heartbeat(Heartbeat(gateway="b", version=1, in_use=()))] == ["b"]
    names = {name.partition(b"}")[0] for name in server.client.scan_iter()}
    assert names == {b"{tandem:rollout", b"{staging:rollout"}
    await one.close()
    await other.close()


async def test_a_wrong_password_is_told_apart_from_an_unreachable_store(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        store = RedisStore(server.url.replace("secret", "wrong"), timeout_s=PATIENCE_S)
        with structlog.testing.capture_logs() as logs:
            await store.check()
        assert [(line["log_level"], line["problem"]) for line in logs] == [("error", "auth")]
        with pytest.raises(Unavailable, match="refuses the gateway's user or password") as raised:
            await store.read()
        assert raised.value.reason == "ROLLOUT_STORE_UNREACHABLE"
        await store.close()


def test_the_heartbeat_timeout_is_longer_than_the_longest_tick() -> None:
    """Else others would unload releases that are in use."""
    settings: dict[str, Any] = {"models": Path(), "release": STABLE, "rollout_tick_s": HEARTBEAT_TIMEOUT_S}
    with pytest.raises(ValidationError, match="rollout_tick_s"):
        GatewaySettings(**settings)


async def test_a_file_keeps_state_and_counts_over_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    document = Document(version=1, state=some_state())
    first = FileStore(path)
    await first.compare_and_set(0, document)
    await first.add("r/0", numbers("stable", 5))
    second = FileStore(path)
    assert await second.read() == document
    assert (await second.add("r/0", Counts())).counts.number("stable", "requests") == 5
    assert os.listdir(tmp_path) == ["rollout.json"]


async def test_the_file_is_whole_at_every_moment(tmp_path: Path) -> None:
    """Else a crash could leave half a state."""
    path = tmp_path / "rollout.json"
    store = FileStore(path)
    counts = Counts.from_paths({f"canary/first_token/text/{bucket}": 1 for bucket in range(2000)})
    await store.add("r/0", counts)
    ended = threading.Event()

    reads: list[int] = []  # number of counts of each read

    def read_on() -> None:
        while not ended.is_set():
            counts = json.loads(path.read_bytes())["counts"]
            reads.append(sum(name.startswith("canary") for name in counts))

    reading = asyncio.create_task(asyncio.to_thread(read_on))
    while len(reads) < 20 and not reading.done():
        await store.add("r/0", counts)
    ended.set()
    await reading
    assert set(reads) == {2000}


@pytest.mark.parametrize(
    "content", ["", "{", '{"document": {"version": -1}}', '{"document": {"version": 1, "state": {}}}']
)
def test_a_corrupt_file_is_rejected_and_not_changed(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rollout.json"
    path.write_text(content)
    with pytest.raises(FailedPrecondition) as raised:
        FileStore(path)
    assert raised.value.reason == "BAD_ROLLOUT_STATE"
    assert path.read_text() == content


def test_a_path_that_the_system_refuses_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition) as raised:
        FileStore(tmp_path / ("x" * 300))
    assert raised.value.reason == "BAD_ROLLOUT_STATE"


async def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "absent" / "rollout.json")
    with pytest.raises(Unavailable) as raised:
        await store.compare_and_set(0, Document(version=1, state=some_state()))
    assert raised.value.reason == "ROLLOUT_STORE_UNREACHABLE"
    assert await store.read() == Document()


async def test_corrupt_state_in_redis_is_a_typed_error(server: RedisServer) -> None:
    server.client.flushall()
    server.client.hset("{tandem:rollout}:state", mapping={"version": "3", "state": "nonsense"})
    store = RedisStore(server.url, timeout_s=PATIENCE_S)
    with pytest.raises(FailedPrecondition) as raised:
        await store.read()
    assert raised.value.reason == "BAD_ROLLOUT_STATE"
    await store.close()


async def test_a_hanging_redis_counts_as_unreachable_within_seconds(server: RedisServer) -> None:
    store = RedisStore(server.url)
    server.freeze()
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(Unavailable) as raised:
                await store.read()
    finally:
        server.thaw()
    assert raised.value.reason == "ROLLOUT_STORE_UNREACHABLE"
    await store.close()
