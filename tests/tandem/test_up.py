"""`tandem up`: processes that never outlive their parent."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tandem import Client
from tandem.commands.up import newest_release
from tandem.errors import FailedPrecondition, NotFound, Unavailable
from tandem.stack.stack import Stack, StackConfig

TANDEM = str(Path(sys.executable).parent / "tandem")


class Up:
    """A running `tandem up` with a JSON log."""

    def __init__(self, models: Path, *flags: str) -> None:
        command = [TANDEM, "up", "--models", str(models), "--port", "0", "--threads", "1", *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, encoding="utf-8")

    def wait_until_ready(self) -> dict[str, Any]:
        """Return the ready line of the command itself."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            entry: dict[str, Any] = json.loads(line)  # every line is JSON, also those of the services
            if entry["event"] == "ready" and entry["service"] == "tandem":
                return entry
        raise AssertionError(f"ended with {self.process.wait()} before it was ready")

    def services(self) -> dict[str, int]:
        """Return the process id of each service by module."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        modules = {Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[2].decode(): int(pid) for pid in children}
        assert modules.keys() == {"vision_service", "language_service", "gateway"}
        return modules

    def end(self, number: signal.Signals) -> tuple[int, str]:
        """Send a signal and return exit code and remaining log."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=60)
        return self.process.returncode, rest


@pytest.fixture
def up(store: Path) -> Iterator[Up]:
    up = Up(store)
    yield up
    up.process.kill()
    up.process.communicate()


def is_running(pid: int) -> bool:
    """Return whether a process runs. A zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline, "a service outlived its parent"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_stops_all_services_in_order(up: Up, number: signal.Signals) -> None:
    """The gateway stops first: running answers need both stages."""
    ready = up.wait_until_ready()
    with Client(ready["address"]) as client:
        assert client.ask("Hello", max_tokens=2).usage.completion_tokens == 2
    pids = list(up.services().values())
    code, log = up.end(number)
    assert code == 0
    assert not any(map(is_running, pids))
    stopped = [entry["service"] for entry in map(json.loads, log.splitlines()) if entry["event"] == "stopped"]
    assert stopped[0] == "gateway"
    assert sorted(stopped) == ["gateway", "language", "vision"]


@pytest.mark.slow
def test_the_http_door_is_part_of_the_stack_and_stops_first(store: Path) -> None:
    up = Up(store, "--http", "0")
    try:
        page = up.wait_until_ready()["page"]
        with urllib.request.urlopen(f"{page}readyz", timeout=20) as response:
            assert response.status == 200
        code, log = up.end(signal.SIGTERM)
    finally:
        up.process.kill()
        up.process.communicate()
    stopped = [entry["service"] for entry in map(json.loads, log.splitlines()) if entry["event"] == "stopped"]
    assert (code, stopped[:2]) == (0, ["http", "gateway"])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["vision_service", "gateway"])
def test_a_dead_service_stops_the_stack_and_is_named(up: Up, victim: str) -> None:
    up.wait_until_ready()
    services = up.services()
    os.kill(services[victim], signal.SIGKILL)
    _, log = up.process.communicate(timeout=60)
    assert up.process.returncode == 1
    assert log.splitlines()[-1] == f"The {victim.removesuffix('_service')} service stopped, exit code -9."
    assert not any(map(is_running, services.values()))


@pytest.mark.slow
def test_no_service_outlives_a_killed_parent(up: Up) -> None:
    """After kill -9 only the kernel can end the services."""
    up.wait_until_ready()
    pids = list(up.services().values())
    up.process.kill()
    wait_until_gone(pids)


@pytest.mark.slow
def test_a_signal_during_the_start_stops_the_stack(up: Up) -> None:
    assert up.process.stderr is not None
    assert json.loads(up.process.stderr.readline())["event"] == "starting"
    pids: list[str] = []
    while not pids:  # until the first service has started
        pids = Path(f"/proc/{up.process.pid}/task/{up.process.pid}/children").read_text().split()
    code, _ = up.end(signal.SIGINT)
    assert code == 0
    wait_until_gone(list(map(int, pids)))  # the kernel ends a service that was just being forked


@pytest.mark.slow
def test_running_answers_finish_before_the_stop(store: Path) -> None:
    """The stack drains: a streaming answer is complete."""
    config = StackConfig(models=store, release="tiny-v1.0.0", threads=1, drain_s=20)
    with Stack(config) as stack, Client(stack.address) as client:
        stream = client.generate("Go on", max_tokens=200, ignore_eos=True)
        pieces = iter(stream)
        next(pieces)
        stack.stop()
        assert len(list(pieces)) > 0
        assert stream.final.usage.completion_tokens == 200


@pytest.mark.slow
def test_a_stack_that_logs_only_errors_becomes_ready(store: Path) -> None:
    with Stack(StackConfig(models=store, release="tiny-v1.0.0", threads=1, log_level="error")) as stack:
        assert stack.address_of("vision") != stack.address_of("language")


@pytest.mark.slow
def test_a_release_may_name_both_tags(store: Path) -> None:
    config = StackConfig(models=store, release="tiny-v1.0.0, tiny-v1.0.0", threads=1)
    with Stack(config) as stack, Client(stack.address) as client:
        assert [str(info.release) for info in client.models()] == ["tiny-v1.0.0"]


def test_a_taken_port_is_one_sentence(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(FailedPrecondition, match=f"Port {port} .*in use.*--port"):
            Stack(StackConfig(models=store, release="tiny-v1.0.0", port=port)).start()


@pytest.mark.slow
def test_a_service_that_fails_to_start_is_named_with_its_reason(store: Path) -> None:
    stack = Stack(StackConfig(models=store, release="other-v1.0.0"))
    with pytest.raises(
        Unavailable, match=r"The (vision|language) service stopped before it was ready: .*other-v1\.0\.0"
    ):
        stack.__enter__()
    assert not any(map(is_running, stack.pids.values()))


@pytest.mark.slow
def test_a_refused_flag_is_reported_in_the_service_s_words(store: Path) -> None:
    config = StackConfig(models=store, release="tiny-v1.0.0", vision_flags=["--max-queue", "none"])
    with pytest.raises(Unavailable, match="The vision service stopped before it was ready: --max-queue"), Stack(config):
        pass


@pytest.mark.parametrize(("before", "outcome"), [("SIG_DFL", "interrupted"), ("SIG_IGN", "lives")])
def test_a_closed_terminal_stops_the_stack_except_under_nohup(before: str, outcome: str) -> None:
    """`nohup` makes the command ignore SIGHUP."""
    program = f"""
import os, signal
from tandem.stack.stack import interrupt_on_signals
signal.signal(signal.SIGHUP, signal.{before})
interrupt_on_signals()
try:
    os.kill(os.getpid(), signal.SIGHUP)
    print("lives")
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, encoding="utf-8", timeout=60)
    assert done.stdout == f"{outcome}\n"


def test_the_newest_release_has_the_highest_version(tmp_path: Path) -> None:
    """Versions compare as numbers, across all names."""
    with pytest.raises(NotFound, match=f"no checkpoint in {tmp_path}; `tandem checkpoint new` makes one"):
        newest_release(tmp_path)
    for tag in ("b-v1.9.0", "a-v1.10.0", "c-v1.2.30", "not a tag"):
        (tmp_path / tag).mkdir()
    assert newest_release(tmp_path) == "a-v1.10.0"
