"""Probes that follow in the steps, through a gateway with scripted stages."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from chassis.atomic_file import write_atomically
from checkpoint.release_probes import add_probes
from gateway.rollout import probe_runner
from tandem.v1 import rollout_pb2
from tests.checkpoint.probes.files import probe_line
from tests.gateway.redis_server import RedisServer
from tests.gateway.rollout.conftest import MakeGateway
from tests.gateway.rollout.live_gateway import CANARY, STABLE, open_gateway
from tests.gateway.rollout.probing_gateway import BOTH, ONLY_STABLE, ROLLED_BACK, RUNNING, begin, lines


async def test_probes_that_are_left_follow_in_the_steps(make_gateway: MakeGateway) -> None:
    """The first step need not wait for all of them."""
    async with make_gateway(lines(BOTH, 300)) as live:
        await begin(live, probes_before_traffic=20)
        started = await live.wait_until(lambda rollout: rollout.phase == RUNNING and rollout.probes.remaining > 0)
        assert started.changes[-1].reason.endswith(
            "Of 20 probes it answers 0 wrong, stable 0. 280 more follow in the steps."
        )
        rollout = await live.wait_until(lambda rollout: not rollout.probes.remaining, 60)
        assert 200 < rollout.probes.judged < 300  # it ends once the drop is shown to be small
        assert rollout.findings[-1].verdict == rollout_pb2.ROLLOUT_VERDICT_WITHIN
        asked = [start.sampling.max_tokens for start in live.language.starts if start.tag == CANARY]
    assert len(asked) == len(set(asked)) == rollout.probes.judged  # each probe once


async def test_a_canary_that_is_worse_in_the_steps_is_rolled_back_by_its_probes(make_gateway: MakeGateway) -> None:
    async with make_gateway(lines(ONLY_STABLE, 300)) as live:
        stable, canary = live.language.answers[STABLE], live.language.answers[CANARY]
        live.language.answers[CANARY] = stable
        await begin(live, probes_before_traffic=20)
        await live.wait_for_phase(RUNNING)
        live.language.answers[CANARY] = canary
        rollout = await live.wait_for_phase(ROLLED_BACK)
        assert "quality is beyond its bound" in rollout.changes[-1].reason
        assert "Lost probes: " in rollout.changes[-1].reason


async def test_probes_that_are_added_in_the_steps_are_asked_too(make_gateway: MakeGateway, tmp_path: Path) -> None:
    """So few probes can never show a small drop.

    An operator adds some, and need not set the rollout again.
    """
    further = tmp_path / "further.jsonl"
    further.write_text(lines(BOTH, 60))
    async with make_gateway("", rollout_probes=further) as live:
        await begin(live)
        started = await live.wait_for_phase(RUNNING)
        assert (started.probes.judged, started.findings[-1].verdict) == (60, rollout_pb2.ROLLOUT_VERDICT_OPEN)
        write_atomically(further, lines(BOTH, 300).encode())
        rollout = await live.wait_until(lambda rollout: rollout.probes.judged > 200, 60)
        assert rollout.findings[-1].verdict == rollout_pb2.ROLLOUT_VERDICT_WITHIN
        asked = [start.sampling.max_tokens for start in live.language.starts if start.tag == CANARY]
    assert len(asked) == len(set(asked)) == rollout.probes.judged  # each probe once


async def test_a_release_without_probes_can_get_some_in_the_steps(make_gateway: MakeGateway, tmp_path: Path) -> None:
    async with make_gateway("") as live:
        await begin(live)
        await live.wait_for_phase(RUNNING)
        (tmp_path / "late.jsonl").write_text(lines(ONLY_STABLE))
        add_probes(tmp_path / "store" / CANARY, tmp_path / "late.jsonl")
        rollout = await live.wait_for_phase(ROLLED_BACK)
        assert "quality is beyond its bound" in rollout.changes[-1].reason
        assert not rollout.probes.problem


async def test_of_a_changed_file_only_new_probes_are_asked_in_the_steps(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    """An invalid file is read again once it changes."""
    further = tmp_path / "further.jsonl"
    further.write_text(f"{probe_line('q', judge=BOTH, max_tokens=97)}\n{probe_line('r', judge=BOTH, max_tokens=98)}")
    async with make_gateway("", rollout_probes=further) as live:
        await begin(live)
        await live.wait_for_phase(RUNNING)
        write_atomically(further, b"nonsense")
        await asyncio.sleep(0.5)
        assert (await live.get()).phase == RUNNING
        changed = f"{probe_line('r', judge=BOTH, max_tokens=98)}\n{probe_line('s', judge=BOTH, max_tokens=99)}"
        write_atomically(further, changed.encode())
        rollout = await live.wait_until(lambda rollout: rollout.probes.judged == 3)
        asked = [start.sampling.max_tokens for start in live.language.starts if start.tag == CANARY]
    assert sorted(asked) == [97, 98, 99]
    assert rollout.probes.remaining == 0


async def test_another_gateway_goes_on_with_the_probes_in_the_steps(
    make_gateway: MakeGateway, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_runner, "LEASE_S", 1.0)
    with RedisServer(tmp_path) as server:
        shared = {"rollout_redis": server.url}
        async with AsyncExitStack() as dying:
            first = await dying.enter_async_context(make_gateway(lines(BOTH, 300), **shared))
            await begin(first, probes_before_traffic=20)
            await first.wait_for_phase(RUNNING)
            first.language.go[CANARY].clear()  # its probes hang
            asked = (await first.get()).probes.judged
            async with open_gateway(tmp_path / "store", tokenizer, **shared) as second:
                await dying.aclose()
                rollout = await second.wait_until(lambda rollout: not rollout.probes.remaining, 60)
                assert rollout.probes.judged > max(asked, 200)
                assert (rollout.probes.stable_wrong, rollout.probes.lost) == (0, 0)
