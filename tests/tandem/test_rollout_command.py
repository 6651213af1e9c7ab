"""`tandem rollout` against a real stack."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console

from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from tandem.client.rollouts import Rollouts
from tandem.commands.rollout import parse_steps
from tandem.commands.rollout_view import rollout_view
from tandem.stack.stack import Stack
from tandem.v1 import rollout_pb2
from tests.tandem import in_process

TANDEM = str(Path(sys.executable).parent / "tandem")
STABLE, OTHER = "tiny-v1.0.0", "tiny-v1.1.0"
CURSOR_UP, SHOW_CURSOR = b"\x1b[1A", b"\x1b[?25h"
INTERRUPTED = 130  # exit code of a command that Ctrl-C ended


@pytest.fixture(scope="module")
def other(store: Path) -> Iterator[str]:
    """Add a second release to the running stack's store.

    It goes with the module: other tests count on the store's content.
    """
    create_checkpoint(store, OTHER, RESAMPLER_PRESETS["tiny"], seed=1)
    yield OTHER
    shutil.rmtree(store / OTHER)


@pytest.fixture
def running(stack: Stack, other: str) -> Iterator[Rollouts]:
    """Yield a connection. A rollout left running is rolled back."""
    with Rollouts(stack.address) as rollouts:
        yield rollouts
        if rollouts.get().phase in (rollout_pb2.ROLLOUT_PHASE_PREPARING, rollout_pb2.ROLLOUT_PHASE_RUNNING):
            rollouts.roll_back()


def run(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    return in_process.run("rollout", *arguments, address=stack.address)


def status(stack: Stack) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(run(stack, "status", "--json").stdout)
    return document


def test_a_rollout_is_set_shown_watched_and_rolled_back(stack: Stack, running: Rollouts) -> None:
    further = ("--shadow-canary", "5", "--max-length-ratio", "2", "--probes-before-traffic", "7")
    done = run(stack, "set", OTHER, "--steps", "10:1h,50:1h:20r,100", "--empty-rate", "0", *further, "--json")
    plan = json.loads(done.stdout)["plan"]
    assert (plan["shadow_canary_percent"], plan["guard"]["max_length_ratio"]) == (5, 2)
    assert (plan["guard"]["probes_before_traffic"], plan["guard"]["max_constraint_increase"]) == (7, 0.02)
    assert "max_logprob_drop" not in plan["guard"]
    assert plan["steps"][1] == {"weight_percent": 50.0, "seconds": 3600.0, "requests": "20"}
    assert "max_empty_rate_increase" not in plan["guard"]
    while status(stack)["phase"] == "ROLLOUT_PHASE_PREPARING":
        time.sleep(0.1)
    shown = run(stack, "status").stdout
    assert f"running: {STABLE} to {OTHER}, step 1 of 3" in shown
    assert "error rate" in shown
    assert "\x1b" not in shown
    back = run(stack, "rollback", "--reason", "just a test")
    assert "rolled back" in back.stdout
    assert "just a test" in back.stdout
    changes = [change.reason for change in next(running.watch()).changes]
    assert changes[-1] == "just a test"


def test_status_watch_redraws_one_table_until_ctrl_c(stack: Stack, running: Rollouts) -> None:
    assert run(stack, "set", OTHER, "--steps", "10:1h,100").returncode == 0
    master, terminal = pty.openpty()
    environment = {**os.environ, "TANDEM_ADDRESS": stack.address, "TERM": "xterm", "COLUMNS": "100"}
    command = [TANDEM, "rollout", "status", "--watch"]
    with subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment) as process:
        drawn = b""
        while drawn.count(b"step 1 of 2") < 3:
            drawn += os.read(master, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == INTERRUPTED
    drawn += os.read(master, 65536)
    os.close(terminal)
    os.close(master)
    assert drawn.count(CURSOR_UP) >= 2 * 6  # up to the start of the last table
    assert drawn.rindex(SHOW_CURSOR) > drawn.rindex(b"step 1 of 2")


def test_a_refused_plan_is_one_sentence_with_exit_code_1(stack: Stack, running: Rollouts) -> None:
    for arguments, words in (
        ((OTHER, "--steps", "50:1m,5:1m,100"), "the weights must rise"),
        ((OTHER, "--steps", "50:1m,101"), "less than or equal to 100"),
        (("tiny-v9.0.0",), "has no tiny-v9.0.0"),
        ((STABLE,), "name a canary other than the stable release"),
    ):
        done = run(stack, "set", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1


def test_promoting_without_a_rollout_is_an_error(stack: Stack) -> None:
    done = run(stack, "promote")
    assert done.returncode == 1
    assert "No rollout runs" in done.stderr


@pytest.mark.parametrize("text", ["", "5%", "5:10", "5:200r:10m", "-1", "five"])
def test_malformed_steps_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_steps(text)


def test_durations_are_seconds_minutes_or_hours() -> None:
    steps = parse_steps("1:30s, 5:2m:200r, 50:1.5h, 100")
    assert [(step.seconds, step.requests) for step in steps] == [(30, 0), (120, 200), (5400, 0), (0, 0)]


def test_a_gateway_without_its_store_shows_that_first() -> None:
    console = Console(width=120)
    with console.capture() as captured:
        console.print(rollout_view(rollout_pb2.Rollout(in_force=STABLE), 0))
    assert captured.get().splitlines() == [
        "This gateway cannot reach the store; this is the last known state.",
        f"No rollout yet; {STABLE} answers everything.",
    ]


def test_mirrored_requests_are_one_line() -> None:
    shadow = rollout_pb2.RolloutShadowCounts(
        counts=rollout_pb2.RolloutCounts(requests=12, errors=1),
        first_token_s=0.25,
        inter_token_s=0.02,
        compared=10,
        equal=9,
        dropped=2,
    )
    plan = rollout_pb2.RolloutPlan(stable=STABLE, canary=OTHER)
    changes = [rollout_pb2.RolloutChange(number=1, reason="Because.")]
    rollout = rollout_pb2.Rollout(id="r", plan=plan, shadow=shadow, changes=changes, store_reachable=True)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(rollout_view(rollout, 0))
    assert (
        "mirrored to the canary: 12 requests, 1 errors, first token 250.0 ms, between tokens 20.0 ms, "
        "9 of 10 greedy answers equal, 2 dropped" in captured.get()
    )
    assert "mirrored to stable" not in captured.get()
    assert ["agreement", "90.0", "%", "-"] in [line.split() for line in captured.get().splitlines()]
    rollout.shadow_stable.CopyFrom(shadow)
    rollout.shadow_stable.worse = 1
    with console.capture() as captured:
        console.print(rollout_view(rollout, 0))
    assert "mirrored to stable: 12 requests" in captured.get()
    assert "9 of 10 greedy answers equal (the canary's worse in 1, better in 0)" in captured.get()


def test_means_are_rows_in_their_units() -> None:
    findings = [
        rollout_pb2.RolloutFinding(metric=metric, stable=stable, canary=canary, effect=effect, bound=bound)
        for metric, stable, canary, effect, bound in (
            (rollout_pb2.ROLLOUT_METRIC_LENGTH, 40.0, 120.0, 3.0, 1.5),
            (rollout_pb2.ROLLOUT_METRIC_LOGPROB, -0.3, -0.8, 0.5, 0.4),
            (rollout_pb2.ROLLOUT_METRIC_CONSTRAINT, 0.0, 0.03, 0.03, 0.02),
        )
    ]
    canary = rollout_pb2.RolloutCounts(mean_tokens=120.0, mean_logprob=-0.8, constraint_failures=5, constraint_faults=3)
    rollout = rollout_pb2.Rollout(
        id="r",
        plan=rollout_pb2.RolloutPlan(stable=STABLE, canary=OTHER),
        stable=rollout_pb2.RolloutCounts(mean_tokens=40.0),
        canary=canary,
        changes=[rollout_pb2.RolloutChange(number=1, reason="Because.", findings=findings)],
        store_reachable=True,
    )
    console = Console(width=160)
    with console.capture() as captured:
        console.print(rollout_view(rollout, 0))
    rows = [line.split() for line in captured.get().splitlines()]
    assert ["mean", "tokens", "40.0", "120.0"] in rows
    assert ["mean", "logprob", "-", "-0.800"] in rows
    assert ["constraint", "failures", "0", "5"] in rows
    assert ["constraint", "faults", "0", "3"] in rows
    assert next(row for row in rows if row[:1] == ["length"])[1:5] == ["40.0", "120.0", "3.00x", "1.50x"]
    assert next(row for row in rows if row[:1] == ["logprob"])[1:5] == ["-0.300", "-0.800", "0.500", "0.400"]
    assert next(row for row in rows if row[:2] == ["constraint", "0.00"])[3:7] == ["3.00", "%", "+3.00", "pp"]


def test_answers_to_probes_are_rows_and_a_line() -> None:
    findings = [
        rollout_pb2.RolloutFinding(
            metric=rollout_pb2.ROLLOUT_METRIC_QUALITY,
            slice=name,
            stable=0.01,
            canary=0.01 + drop,
            effect=drop,
            bound=0.02,
            verdict=rollout_pb2.ROLLOUT_VERDICT_OPEN,
        )
        for name, drop in (("", 0.05), ("topic=a", 0.0), ("topic=b", 0.2), ("topic=c", -0.1))
    ]
    probes = rollout_pb2.RolloutProbes(
        judged=90, unjudged=10, stable_wrong=1, canary_wrong=6, lost=5, lost_ids=["p1", "p2", "p3", "p4", "p5"]
    )
    plan = rollout_pb2.RolloutPlan(stable=STABLE, canary=OTHER)
    changes = [rollout_pb2.RolloutChange(number=1, reason="Because.", findings=findings)]
    rollout = rollout_pb2.Rollout(id="r", plan=plan, changes=changes, probes=probes, store_reachable=True)
    console = Console(width=160)
    with console.capture() as captured:
        console.print(rollout_view(rollout, 0))
    lines = captured.get().splitlines()
    rows = [line.split()[0] for line in lines if "pp" in line]
    assert rows == ["quality", "topic=b", "topic=a", "topic=c"]
    assert "+5.00 pp" in captured.get()
    assert (
        "quality (probes): of 90 answers stable has 1 wrong, the canary 6, 10 without verdict; lost: p1, p2, p3, ...."
        in lines
    )
    probes.remaining = 310
    rollout.probes.CopyFrom(probes)
    for phase, is_shown in ((rollout_pb2.ROLLOUT_PHASE_PREPARING, True), (rollout_pb2.ROLLOUT_PHASE_PROMOTED, False)):
        rollout.phase = phase
        with console.capture() as captured:
            console.print(rollout_view(rollout, 0))
        shown = " ".join(captured.get().split())
        assert ("lost: p1, p2, p3, .... 310 are not asked yet." in shown) is is_shown
    probes.Clear()
    probes.problem = "Neither release has probes."
    rollout.probes.CopyFrom(probes)
    with console.capture() as captured:
        console.print(rollout_view(rollout, 0))
    assert "quality (probes): Neither release has probes." in captured.get()
