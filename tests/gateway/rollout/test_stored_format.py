"""The stored format stays, so old rollouts stay readable."""

import json
from collections import Counter
from pathlib import Path

from gateway.rollout.policy.counts import Counts
from gateway.rollout.redis_store import RedisStore
from gateway.rollout.store import FileStore
from gateway.rollout.stored_format import Document, Heartbeat
from tests.gateway.redis_server import RedisServer

# As version 0.1 wrote them.
STATE = """
{"id":"1f3a","plan":{"stable":"demo-v1.0.0","canary":"demo-v1.1.0","steps":[
{"weight_percent":0.0,"seconds":0.0,"requests":2},{"weight_percent":5.0,"seconds":10.0,"requests":60},
{"weight_percent":100.0,"seconds":0.0,"requests":0}],"guard":{"max_error_rate_increase":0.02,
"max_empty_rate_increase":null,"max_first_token_ratio":1.5,"max_inter_token_ratio":null,"min_requests":50,
"overdue_s":3.0,"false_rollback":0.01,"false_promotion":0.05},"shadow_percent":12.5},"phase":"running",
"in_force":"demo-v1.0.0","step":1,"step_started_s":1700000011.5,"looks":{"taken":1,"next_at":72,"final_taken":1,
"final_next_at":72,"within":["first_token"]},"changes":[{"number":3,"at_s":1700000011.5,"event":"advanced",
"reason":"The mirrored step is over.","weight_percent":5.0,"findings":[]},{"number":4,"at_s":1700000031.5,
"event":"held","reason":"Not shown to be within its bound yet: error_rate.","weight_percent":5.0,"findings":[
{"metric":"error_rate","stable":0.01,"canary":0.0,"effect":-0.01,"bound":0.02,"p_beyond":1.0,"p_within":0.3,
"verdict":"open"},{"metric":"first_token","stable":0.13,"canary":null,"effect":null,"bound":1.5,"p_beyond":0.9,
"p_within":1e-16,"verdict":"within"}]}]}
""".replace("\n", "")
COUNTS = (
    '{"stable/requests":2,"stable/errors":1,"stable/overdue":0,"stable/first_token/text/-54":2,'
    '"canary/requests":1,"canary/first_token/images at hand/-54":1,"canary/inter_token/images encoded/-107":1,'
    '"shadow/requests":1,"shadow/compared":1,"shadow/equal":1,"shadow/dropped":2}'
)
FILE = f'{{"document":{{"version":7,"state":{STATE}}},"window":"1f3a/1","counts":{COUNTS}}}'
HEARTBEAT = '{"gateway":"a","version":7,"in_use":["demo-v1.0.0"],"waiting":{"stable":2}}'


async def test_a_file_of_an_earlier_version_is_read_and_written_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    path.write_text(FILE)
    store = FileStore(path)
    document = await store.read()
    assert await store.compare_and_set(7, Document(version=8, state=document.state))
    assert path.read_text() == FILE.replace('"version":7', '"version":8')


async def test_counts_of_an_earlier_version_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    path.write_text(FILE)
    added = {"shadow/dropped": 3, "canary/first_token/images at hand/-54": 1, "canary/errors": 1}
    await FileStore(path).add("1f3a/1", Counts.from_paths(added))
    assert Counter(json.loads(path.read_text())["counts"]) == Counter(json.loads(COUNTS)) + Counter(added)


async def test_redis_keys_of_an_earlier_version_are_read_and_written_unchanged(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        server.client.hset("{tandem:rollout}:state", mapping={"version": "7", "state": STATE})
        server.client.hset("{tandem:rollout}:counts:1f3a/1", mapping=json.loads(COUNTS))
        server.client.hset("{tandem:rollout}:gateways", "a", f"{server.client.time()[0]} {HEARTBEAT}")
        store = RedisStore(server.url, timeout_s=20)
        document = await store.read()
        assert await store.compare_and_set(7, Document(version=8, state=document.state))
        assert server.client.hgetall("{tandem:rollout}:state") == {b"version": b"8", b"state": STATE.encode()}
        await store.add("1f3a/1", Counts.from_paths({"shadow/dropped": 3}))
        counts = {**json.loads(COUNTS), "shadow/dropped": 5}
        stored = {path.encode(): str(count).encode() for path, count in counts.items()}
        assert server.client.hgetall("{tandem:rollout}:counts:1f3a/1") == stored
        other = Heartbeat(gateway="b", version=8, in_use=())
        first, second = sorted(await store.heartbeat(other), key=lambda one: one.gateway)
        assert (first.model_dump_json(), second) == (HEARTBEAT, other)
        await store.close()


async def test_a_file_keeps_counts_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "rollout.json"
    path.write_text(FILE.replace('"stable/requests":2', '"stable/requests":2,"stable/retries":9'))
    await FileStore(path).add("1f3a/1", Counts.from_paths({"stable/requests": 1}))
    counts = json.loads(path.read_text())["counts"]
    assert (counts["stable/requests"], counts["stable/retries"]) == (3, 9)
