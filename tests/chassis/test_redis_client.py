"""Failures of a real server have names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError, ResponseError

from chassis.redis_client import RedisClient, failure_kind, is_connection_stale
from tests.gateway.redis_server import RedisServer
from tests.gateway.scripted import eventually

PATIENT_S = 5.0
SCRIPT = "return redis.call('SET', KEYS[1], 'value')"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path) as server:
        yield server


async def kinds(server: RedisServer, url: str = "") -> set[str]:
    """Return the failures of a plain and a scripted write."""
    client = RedisClient(url or server.url, timeout_s=PATIENT_S, max_connections=2)
    found: set[str] = set()
    for command in (("SET", "name", "value"), ("EVAL", SCRIPT, 1, "name")):
        with pytest.raises((RedisError, OSError)) as raised:
            await client.commands.execute_command(*command)
        found.add(failure_kind(raised.value))
    await client.close()
    return found


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"min-replicas-to-write": "1"}, "failover"),
        ({"maxmemory": "1", "maxmemory-policy": "noeviction"}, "full"),
    ],
)
async def test_a_server_that_takes_no_writes(settings: dict[str, str], kind: str, server: RedisServer) -> None:
    for name, value in settings.items():
        server.client.config_set(name, value)
    assert await kinds(server) == {kind}


async def test_a_replica(server: RedisServer) -> None:
    server.client.replicaof("127.0.0.1", "1")
    assert await kinds(server) == {"failover"}


async def test_a_server_with_a_full_disk(tmp_path: Path) -> None:
    with RedisServer(tmp_path, "--dbfilename", "dump.rdb") as server:
        (tmp_path / "dump.rdb").mkdir()  # so no snapshot can be saved
        server.client.config_set("save", "3600 1")
        with pytest.raises(RedisError):
            server.client.save()
        server.client.bgsave(schedule=True)
        info: Any = server.client.info
        await eventually(lambda: info("persistence")["rdb_last_bgsave_status"] == "err")
        assert await kinds(server) == {"full"}


async def test_a_server_that_is_gone(server: RedisServer) -> None:
    server.kill()
    assert await kinds(server) == {"connection"}


async def test_a_server_that_hangs(server: RedisServer) -> None:
    client = RedisClient(server.url, timeout_s=0.2, max_connections=2)
    await client.commands.ping()
    server.freeze()
    with pytest.raises(RedisError) as raised:
        await client.commands.ping()
    server.thaw()
    assert failure_kind(raised.value) == "timeout"
    await client.close()


async def test_a_wrong_password_and_a_user_without_the_right(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        server.client.acl_setuser("reader", enabled=True, passwords=["+word"], keys=["*"], categories=["+@read"])
        for user in ("", ":wrong@", "reader:word@", "nobody:word@"):
            assert await kinds(server, f"redis://{user}127.0.0.1:{server.port}") == {"auth"}
    with RedisServer(tmp_path) as server:  # asks for none
        assert await kinds(server, f"redis://:secret@127.0.0.1:{server.port}") == {"auth"}


async def test_the_check_at_the_start_tells_why_a_server_cannot_be_used(tmp_path: Path) -> None:
    with RedisServer(tmp_path, password="secret") as server:
        server.client.acl_setuser("writer", enabled=True, passwords=["+word"], keys=["*"], categories=["+@write"])
        users = {":secret@": None, "writer:word@": None, ":wrong@": "auth", "": "auth"}
        for user, problem in users.items():
            assert await check(f"redis://{user}127.0.0.1:{server.port}") == problem
    assert await check(f"redis://127.0.0.1:{server.port}") == "connection"


async def check(url: str) -> str | None:
    client = RedisClient(url, timeout_s=PATIENT_S, max_connections=2)
    problem = await client.check("--setting")
    await client.close()
    return problem


def test_replies_within_a_scripts_error_count_as_well() -> None:
    """As Redis 6 sends them."""
    error = ResponseError("ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write")
    assert failure_kind(error) == "failover"
    assert is_connection_stale(error)
    assert failure_kind(ResponseError("ERR unknown command 'READONLY '")) == "refused"
