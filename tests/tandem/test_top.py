"""The live table: figures of an interval from two pages of metrics, and of a stack that runs."""

import math
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from tandem import Client
from tandem.commands import app
from tandem.commands.pulse import parse, pulses
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


def test_a_pulse_is_what_happened_between_two_readings() -> None:
    (pulse,) = pulses(parse(BEFORE, at_s=5), parse(AFTER, at_s=7))
    assert (pulse.tag, pulse.running, pulse.waiting, pulse.preemptions) == ("a-v1.0.0", 3, 2, 4)
    assert (pulse.used, pulse.kept) == (0.25, 0.1)
    assert (pulse.prompt_rate, pulse.answer_rate, pulse.found) == (20, 30, 0.75)
    assert (pulse.step_tokens, pulse.step_ms) == (5, 25)
    assert math.isnan(pulse.right)  # nothing was guessed


def test_a_service_that_started_anew_counts_from_zero() -> None:
    (pulse,) = pulses(parse(AFTER, at_s=5), parse(BEFORE, at_s=7))
    assert (pulse.prompt_rate, pulse.answer_rate, pulse.step_tokens, pulse.step_ms) == (50, 25, 15, 100)


def test_one_interval_of_a_running_stack(stack: Stack) -> None:
    with Client(stack.address) as client:
        client.ask("Which?", max_tokens=4)
    done = CliRunner().invoke(app, ["top", stack.metrics_address("language"), "--once", "--interval-s", "0.2"])
    assert done.exit_code == 0
    heading, row = done.stdout.splitlines()
    assert heading.split()[:3] == ["model", "running", "waiting"]
    assert re.match(r"tiny-v1\.0\.0 +0 +0 +0% +\d+%", row)


def test_a_service_that_does_not_answer_is_told(stack: Stack) -> None:
    both = [stack.metrics_address("language"), "127.0.0.1:1"]
    done = CliRunner().invoke(app, ["top", *both, "--once", "--interval-s", "0.1"])
    assert "127.0.0.1:1: no answer" in done.stdout
    assert "tiny-v1.0.0" in done.stdout
    alone = subprocess.run([TANDEM, "top", "127.0.0.1:1"], capture_output=True, encoding="utf-8", timeout=60)
    assert (alone.returncode, alone.stderr) == (1, "No metrics at 127.0.0.1:1.\n")


def test_a_port_that_shows_no_metrics_is_told_as_one(stack: Stack) -> None:
    """The port of the service beside it is easily taken for it, and answers in another protocol."""
    done = subprocess.run([TANDEM, "top", stack.address], capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (1, f"No metrics at {stack.address}.\n")


def test_in_a_pipe_each_table_comes_when_it_is_known(stack: Stack) -> None:
    command = [TANDEM, "top", stack.metrics_address("language"), "--interval-s", "0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(6)]
    assert [line.split()[0] for line in lines] == 3 * ["model", "tiny-v1.0.0"]
    process.send_signal(2)
    assert process.wait(timeout=30) == 0
    process.stdout.close()


def test_it_is_live_in_a_terminal_until_it_is_interrupted(stack: Stack) -> None:
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
