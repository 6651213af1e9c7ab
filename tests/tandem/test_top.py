"""`tandem top`: statistics of an interval, and live tables."""

import asyncio
import math
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chassis.metrics_server import serve_metrics
from chassis.settings import ProcessSettings
from tandem import Client
from tandem.commands import app
from tandem.commands.engine_stats import engine_stats, parse_snapshot, read_snapshot
from tandem.stack.stack import Stack

TANDEM = str(Path(sys.executable).parent / "tandem")

BEFORE = """
# TYPE tandem_language_running gauge
tandem_language_running{tag="a-v1.0.0"} 1.0
tandem_language_waiting{tag="a-v1.0.0"} 0.0
tandem_language_kv_blocks{tag="a-v1.0.0"} 200.0
tandem_language_kv_blocks_used{tag="a-v1.0.0"} 10.0
tandem_language_kv_blocks_kept{tag="a-v1.0.0"} 0.0
# TYPE tandem_language_tokens counter
tandem_language_tokens_total{kind="prompt",tag="a-v1.0.0"} 100.0
tandem_language_tokens_total{kind="found",tag="a-v1.0.0"} 0.0
tandem_language_tokens_total{kind="answer",tag="a-v1.0.0"} 50.0
tandem_language_tokens_total{kind="answer",tag="gone-v1.0.0"} 50.0
# TYPE tandem_language_step_seconds histogram
tandem_language_step_seconds_count{tag="a-v1.0.0"} 10.0
tandem_language_step_seconds_sum{tag="a-v1.0.0"} 1.0
# TYPE tandem_language_step_tokens histogram
tandem_language_step_tokens_sum{tag="a-v1.0.0"} 150.0
"""
AFTER = """
# TYPE tandem_language_running gauge
tandem_language_running{tag="a-v1.0.0"} 3.0
tandem_language_kernels{kernels="avx2",tag="a-v1.0.0"} 1.0
tandem_language_waiting{tag="a-v1.0.0"} 2.0
tandem_language_kv_blocks{tag="a-v1.0.0"} 200.0
tandem_language_kv_blocks_used{tag="a-v1.0.0"} 50.0
tandem_language_kv_blocks_kept{tag="a-v1.0.0"} 20.0
# TYPE tandem_language_tokens counter
tandem_language_tokens_total{kind="prompt",tag="a-v1.0.0"} 140.0
tandem_language_tokens_total{kind="found",tag="a-v1.0.0"} 120.0
tandem_language_tokens_total{kind="answer",tag="a-v1.0.0"} 110.0
# TYPE tandem_language_preemptions counter
tandem_language_preemptions_total{tag="a-v1.0.0"} 4.0
# TYPE tandem_language_step_seconds histogram
tandem_language_step_seconds_count{tag="a-v1.0.0"} 30.0
tandem_language_step_seconds_sum{tag="a-v1.0.0"} 1.5
# TYPE tandem_language_step_tokens histogram
tandem_language_step_tokens_sum{tag="a-v1.0.0"} 250.0
"""


def test_engine_stats_are_the_difference_of_two_snapshots() -> None:
    (stats,) = engine_stats(parse_snapshot(BEFORE, at_s=5), parse_snapshot(AFTER, at_s=7))
    assert (stats.tag, stats.running, stats.waiting, stats.preemptions) == ("a-v1.0.0", 3, 2, 4)
    assert (stats.kv_used, stats.kv_evictable) == (0.25, 0.1)
    assert (stats.prompt_rate, stats.answer_rate, stats.hit_rate) == (20, 30, 0.75)
    assert (stats.step_tokens, stats.step_ms) == (5, 25)
    assert math.isnan(stats.draft_hit_rate)  # no drafts
    assert stats.kernels == "avx2"


async def test_metrics_are_read_without_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy knows no address of this machine."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    async with serve_metrics(ProcessSettings()) as port:
        snapshot = await asyncio.to_thread(read_snapshot, f"http://127.0.0.1:{port}/metrics")
    assert snapshot.at_s > 0


def test_a_restarted_service_counts_from_zero() -> None:
    (stats,) = engine_stats(parse_snapshot(AFTER, at_s=5), parse_snapshot(BEFORE, at_s=7))
    assert (stats.prompt_rate, stats.answer_rate, stats.step_tokens, stats.step_ms) == (50, 25, 15, 100)


def wait_for_one_model(stack: Stack) -> None:
    """Wait until the canaries of other tests are unloaded."""
    deadline = time.monotonic() + 60
    while len(engine_stats(*2 * [read_snapshot(stack.metrics_url("language"))])) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_once_prints_one_interval_of_a_running_stack(stack: Stack) -> None:
    wait_for_one_model(stack)
    with Client(stack.address) as client:
        client.ask("Which?", max_tokens=4)
    done = CliRunner().invoke(app, ["top", stack.metrics_address("language"), "--once", "--interval-s", "0.2"])
    assert done.exit_code == 0
    heading, row = done.stdout.splitlines()
    assert heading.split()[:4] == ["model", "kernels", "running", "waiting"]
    assert re.match(r"tiny-v1\.0\.0 +torch +0 +0 +0% +\d+%", row)


def test_a_service_without_an_answer_is_named(stack: Stack) -> None:
    both = [stack.metrics_address("language"), "127.0.0.1:1"]
    done = CliRunner().invoke(app, ["top", *both, "--once", "--interval-s", "0.1"])
    assert "127.0.0.1:1: no answer" in done.stdout
    assert "tiny-v1.0.0" in done.stdout
    alone = subprocess.run([TANDEM, "top", "127.0.0.1:1"], capture_output=True, encoding="utf-8", timeout=60)
    assert (alone.returncode, alone.stderr) == (
        1,
        "No metrics at 127.0.0.1:1: give the metrics_port of a language service's ready line.\n",
    )


def test_a_port_without_metrics_is_named(stack: Stack) -> None:
    """The gRPC port is easily mistaken for the metrics port."""
    done = subprocess.run([TANDEM, "top", stack.address], capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (
        1,
        f"No metrics at {stack.address}: give the metrics_port of a language service's ready line.\n",
    )


def test_a_pipe_gets_each_table_at_once(stack: Stack) -> None:
    wait_for_one_model(stack)
    command = [TANDEM, "top", stack.metrics_address("language"), "--interval-s", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    assert [line.split()[0] for line in lines] == 3 * ["model", "tiny-v1.0.0"]
    process.send_signal(2)
    assert process.wait(timeout=30) == 0
    process.stdout.close()


def test_a_terminal_shows_live_tables_until_ctrl_c(stack: Stack) -> None:
    outside, inside = pty.openpty()
    command = [TANDEM, "top", stack.metrics_address("language"), "--interval-s", "0.1"]
    process = subprocess.Popen(command, stdout=inside, stderr=inside, env={**os.environ, "COLUMNS": "140"})
    os.close(inside)
    shown = b""
    deadline = time.monotonic() + 60
    while shown.count(b"tiny-v1.0.0") < 3:
        assert time.monotonic() < deadline
        shown += os.read(outside, 4096)
    process.send_signal(2)
    assert process.wait(timeout=30) == 0
    os.close(outside)
