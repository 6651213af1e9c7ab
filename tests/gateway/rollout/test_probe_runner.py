"""Probes before traffic, through a gateway with scripted stages."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from chassis.errors import Internal, ResourceExhausted
from gateway.rollout import probe_runner
from gateway.rollout.decision_log import DECISIONS
from tandem.v1 import rollout_pb2
from tests.checkpoint.probes.files import probe_line
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.conftest import MakeGateway
from tests.gateway.rollout.live_gateway import CANARY, STABLE, open_gateway
from tests.gateway.rollout.probing_gateway import BOTH, ONLY_STABLE, PREPARING, ROLLED_BACK, RUNNING, begin, lines
from tests.gateway.scripted import error_of, eventually


async def test_a_plainly_worse_canary_never_sees_a_user(make_gateway: MakeGateway) -> None:
    before = DECISIONS.labels("rolled_back", "quality")._value.get()
    async with make_gateway(lines(ONLY_STABLE)) as live:
        await begin(live)
        asking = [await live.ask(f"user-{number}") for number in range(20)]
        rollout = await live.wait_for_phase(ROLLED_BACK)
        asking += [await live.ask(f"user-{number}") for number in range(20)]
    assert {one.text for one in asking} == {"stable"}
    assert "quality is beyond its bound" in rollout.changes[-1].reason
    assert rollout.probes.judged < 60  # it does not ask on
    assert rollout.probes.lost == rollout.probes.judged == len(rollout.probes.lost_ids)
    assert rollout.changes[-1].findings[0].metric == rollout_pb2.ROLLOUT_METRIC_QUALITY
    assert DECISIONS.labels("rolled_back", "quality")._value.get() == before + 1


async def test_an_equal_canary_starts_with_its_probes_in_the_table(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(BOTH, 300)) as live:
        await begin(live)
        rollout = await live.wait_for_phase(RUNNING, 60)
        quality = rollout.findings[-1]
        assert (quality.metric, quality.verdict) == (
            rollout_pb2.ROLLOUT_METRIC_QUALITY,
            rollout_pb2.ROLLOUT_VERDICT_WITHIN,
        )
        assert rollout.probes.lost == 0
        assert 200 < rollout.probes.judged < 300  # it ends once the drop is shown to be small
        ways = {(start.sampling.temperature, start.priority, start.is_background) for start in live.language.starts}
        live.language.starts.clear()
        await live.ask()
        assert not live.language.starts[0].is_background
    assert ways == {(0, 1, True)}


async def test_without_probes_the_rollout_says_so_and_starts(make_gateway: MakeGateway) -> None:
    async with make_gateway("") as live:
        await begin(live)
        rollout = await live.wait_for_phase(RUNNING)
        assert rollout.probes.problem == "Neither release has probes: its answers are not compared."
        assert rollout.changes[-1].reason.endswith(rollout.probes.problem)
        assert [one.metric for one in rollout.findings] == [rollout_pb2.ROLLOUT_METRIC_ERROR_RATE]


async def test_an_operators_file_is_asked_too(make_gateway: MakeGateway, tmp_path: Path) -> None:
    (tmp_path / "further.jsonl").write_text(lines(ONLY_STABLE, 30))
    async with make_gateway(lines(BOTH, 30), rollout_probes=tmp_path / "further.jsonl") as live:
        await begin(live)
        await live.wait_for_phase(ROLLED_BACK)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("nonsense", "BAD_PROBES"),
        (probe_line(judge={"similar": "a"}), "UNKNOWN_JUDGE"),
        (probe_line(judge={"regex": "("}), "BAD_EXPRESSION"),
        (f"{probe_line()}\n{probe_line()}", "DUPLICATE_PROBE"),
        (
            probe_line(messages=[{"role": "user", "content": [{"type": "image", "file": "no.png"}]}]),
            "PROBE_IMAGE_MISSING",
        ),
    ],
)
async def test_a_bad_file_is_refused_and_the_rollout_in_force_stays(
    make_gateway: MakeGateway, tmp_path: Path, text: str, reason: str
) -> None:
    (tmp_path / "further.jsonl").write_text(text)
    async with make_gateway("", rollout_probes=tmp_path / "further.jsonl") as live:
        assert (await error_of(begin(live))).reason == reason
        assert not (await live.get()).id
        assert (await live.ask()).text == "stable"


async def test_at_most_two_answers_are_in_flight(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(BOTH)) as live:
        live.language.go[STABLE].clear()
        live.language.go[CANARY].clear()
        await begin(live)
        await eventually(lambda: len(live.language.starts) == 2)
        await asyncio.sleep(0.3)
        assert {start.tag for start in live.language.starts} == {STABLE, CANARY}
        assert len(live.language.starts) == 2


async def test_a_canary_that_hangs_at_the_probes_is_not_promoted(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(BOTH)) as live:
        live.language.go[CANARY].clear()
        await begin(live, probe_timeout_s=1)
        rollout = await live.wait_for_phase(RUNNING)
        assert (rollout.probes.judged, rollout.probes.unjudged, rollout.probes.remaining) == (0, 0, 60)
        assert rollout.probes.problem == "The probes ran out of time, 0 of 60 were asked."
        assert rollout.findings[-1].verdict == rollout_pb2.ROLLOUT_VERDICT_OPEN


async def test_a_stage_without_room_is_asked_again(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(BOTH, 20)) as live:
        live.language.errors[CANARY] = ResourceExhausted("It is full.", reason="QUEUE_FULL", retry_after_s=1)
        await begin(live)
        await live.wait_until(lambda _: len(live.language.starts) > 4)
        del live.language.errors[CANARY]
        rollout = await live.wait_for_phase(RUNNING)
        assert (rollout.probes.judged, rollout.probes.canary_wrong) == (20, 0)


async def test_a_canary_that_fails_answers_wrong(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(BOTH)) as live:
        live.language.errors[CANARY] = Internal("The decoder failed.")
        await begin(live)
        rollout = await live.wait_for_phase(ROLLED_BACK)
        assert rollout.probes.canary_wrong == rollout.probes.judged > 0


async def test_an_absent_grader_holds(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines({"grader": "Is it polite?"})) as live:
        await begin(live)
        rollout = await live.wait_for_phase(RUNNING)
        assert (rollout.probes.unjudged, rollout.probes.problem) == (60, "The gateway has no grader.")
        assert rollout.findings[-1].verdict == rollout_pb2.ROLLOUT_VERDICT_OPEN


async def test_an_operators_grader_judges(make_gateway: MakeGateway) -> None:
    command = """/bin/sh -c 'grep -q stable && echo "{\\"right\\": true}" || echo "{\\"right\\": false}"'"""
    async with make_gateway(lines({"grader": "Is it right?"}), rollout_grader=command) as live:
        await begin(live)
        rollout = await live.wait_for_phase(ROLLED_BACK)
        assert rollout.probes.lost == rollout.probes.judged > 0


async def test_an_operator_can_roll_back_while_the_probes_run(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(BOTH)) as live:
        live.language.go[CANARY].clear()
        await begin(live)
        await eventually(lambda: bool(live.language.starts))
        await live.operator.Rollback(rollout_pb2.RolloutsRollbackRequest(reason="enough"))
        live.language.go[CANARY].set()
        await asyncio.sleep(0.3)
        assert (await live.get()).changes[-1].reason == "enough"


async def test_reasons_and_findings_have_ids_and_no_texts(make_gateway: MakeGateway) -> None:
    async with make_gateway(
        lines({"exact": "a secret answer"}) + "\n" + lines(ONLY_STABLE).replace('"p', '"q')
    ) as live:
        await begin(live)
        rollout = await live.wait_for_phase(ROLLED_BACK)
    shown = json.dumps(str(rollout))
    assert "q" in rollout.probes.lost_ids[0]
    assert "secret" not in shown
    assert "What is it?" not in shown


async def test_one_of_two_gateways_runs_the_probes_and_the_other_takes_over(
    make_gateway: MakeGateway, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_runner, "LEASE_S", 1.0)
    with RedisServer(tmp_path) as server:
        shared = {"rollout_redis": server.url}
        async with AsyncExitStack() as dying:
            first = await dying.enter_async_context(make_gateway(lines(BOTH), **shared))
            first.language.go[CANARY].clear()  # its probes hang
            await begin(first)
            await eventually(lambda: bool(first.language.starts))
            async with open_gateway(tmp_path / "store", tokenizer, **shared) as second:
                await asyncio.sleep(1.5)  # longer than a lease, which is renewed
                assert not second.language.starts
                assert (await second.get()).phase == PREPARING
                await dying.aclose()
                rollout = await second.wait_for_phase(RUNNING)
                assert (rollout.probes.judged, len(second.language.starts)) == (60, 120)
