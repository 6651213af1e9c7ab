"""Measure a gateway under floods of large bodies.

    python -m tests.hostile.door [--seconds 20]

prints for each attack the memory of the gateway, and the latency of an honest caller: before the attack, while the same
attack is aimed elsewhere, and during it. A tiny checkpoint is enough: nothing reaches a model.

Attacker, gateway and honest caller share one machine here, so the attack slows the caller down even where the gateway
has no part in it. Two things keep that apart from the cost of the door:

- Elsewhere is `tests.hostile.sink`, a bare gRPC server that refuses each call at once. The share, during divided by
  elsewhere, is the part of the door. For floods whose messages the gateway reads, it contains this reading.
- The attacker runs at the lowest priority. A real one has a machine of its own, and takes no core from the gateway. He
  can then be faster than this one. `--attacker-nice 0` shows the attack with an equal claim to the cores.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc

from chassis.api_keys import authorization, key_sha256, new_key
from tandem.v1 import gateway_pb2, gateway_pb2_grpc

MIB = 2**20
ATTACKER_NICE = 19
HEALTH_CHECK = "/grpc.health.v1.Health/Check"
# Attacks by name. {key} is that of a tenant, other than the honest caller's.
FLOODS = {
    "refused bodies, no key": ["--connections", "200"],
    "trickling bodies, no key": ["--connections", "200", "--trickle"],
    "one connection, no key": ["--connections", "1", "--streams", "900", "--trickle"],
    "health checks, no key": ["--connections", "200", "--method", HEALTH_CHECK, "--body-bytes", "0"],
    "large health checks, no key": ["--connections", "200", "--method", HEALTH_CHECK],
    "trickling bodies of a tenant": ["--connections", "200", "--trickle", "--key", "{key}"],
    "bodies of a tenant": ["--connections", "200", "--key", "{key}"],
}


@dataclass(frozen=True)
class Door:
    """A gateway's process, an honest caller's stub and two keys."""

    process: subprocess.Popen[str]
    port: int
    honest_key: str
    hostile_key: str

    def memory(self, name: str = "VmRSS") -> float:
        """Return the memory of the process, MiB.

        'VmHWM' is the most since `forget_peak`.
        """
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) / 1024

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def call(self, seconds: float) -> list[float]:
        """Return the times of an honest caller's calls, seconds.

        Raises:
            grpc.RpcError: a call was refused, or took 30 s.
        """
        times: list[float] = []
        request = gateway_pb2.TokenizeRequest(text="Is the bag made of leather? " * 20)
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub = gateway_pb2_grpc.GatewayStub(channel)
            ends_s = time.monotonic() + seconds
            while time.monotonic() < ends_s:
                started_s = time.perf_counter()
                stub.Tokenize(request, metadata=(authorization(self.honest_key),), timeout=30)
                times.append(time.perf_counter() - started_s)
                time.sleep(0.005)
        return times

    @contextmanager
    def flood(
        self, flags: Sequence[str], seconds: float, *, nice: int = ATTACKER_NICE, port: int | None = None
    ) -> Iterator[None]:
        """Attack within the block.

        All connections are open at its start.

        Args:
            flags: of `tests.hostile.flood`.
            seconds: longest time.
            nice: priority of the attacker, 19 is the lowest.
            port: what is attacked, by default the gateway.
        """
        command = [sys.executable, "-m", "tests.hostile.flood", "--nice", str(nice), "--seconds", str(seconds)]
        command += ["--port", str(port or self.port), *(flag.format(key=self.hostile_key) for flag in flags)]
        attack = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert attack.stdout is not None
            with attack.stdout:
                attack.stdout.readline()  # the attack has begun
                yield
        finally:
            attack.terminate()
            attack.wait()


@contextmanager
def open_door(models: Path, release: str, folder: Path, *flags: str) -> Iterator[Door]:
    """Run a gateway with two tenants.

    It needs no stages, because honest callers only ask for tokens.
    """
    keys = {name: new_key() for name in ("honest", "hostile")}
    file = folder / "keys.toml"
    file.write_text(
        "".join(
            f'[[tenants]]\nname = "{name}"\nkey_sha256 = ["{key_sha256(key)}"]\nrequests_per_minute = 1000000\n'
            for name, key in keys.items()
        )
    )
    command = [sys.executable, "-m", "gateway", "--models", str(models), "--release", release, "--keys", str(file)]
    listen = ["--listen", "127.0.0.1:0", "--metrics-port", "-1", "--log-format", "json", "--log-level", "error"]
    process = subprocess.Popen([*command, *listen, *flags], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        ready = next(event for line in process.stderr if (event := json.loads(line))["event"] == "ready")
        threading.Thread(target=_drain, args=[process.stderr], daemon=True).start()
        yield Door(process, ready["port"], keys["honest"], keys["hostile"])
    finally:
        process.kill()
        process.wait()


@contextmanager
def open_sink() -> Iterator[int]:
    """Run a bare server that refuses all calls.

    Yields its port.
    """
    sink = subprocess.Popen([sys.executable, "-m", "tests.hostile.sink"], stdout=subprocess.PIPE, text=True)
    try:
        assert sink.stdout is not None
        with sink.stdout:
            yield int(sink.stdout.readline())
    finally:
        sink.kill()
        sink.wait()


def _drain(log: IO[str]) -> None:
    """Read a log, so that it never fills the pipe."""
    with log:
        log.read()


def p99(times: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


@dataclass(frozen=True)
class Figures:
    """Costs of one attack.

    Memory in MiB, times of honest calls in seconds.
    """

    memory_before: float
    memory_most: float
    before: list[float]
    elsewhere: list[float]
    during: list[float]

    def __str__(self) -> str:
        """One line of the table."""
        before, elsewhere, during = (1000 * p99(times) for times in (self.before, self.elsewhere, self.during))
        memory = f"{self.memory_before:8.0f}{self.memory_most:8.0f}{self.memory_most - self.memory_before:+8.0f}"
        return f"{memory}{before:10.1f}{elsewhere:11.1f}{during:9.1f}{during / elsewhere:8.1f}{len(self.during):7}"


HEADER = (
    f"{'':30}{'memory, MiB':>24}{'p99 of an honest caller, ms':>30}\n"
    f"{'attack':30}{'before':>8}{'most':>8}{'more':>8}{'before':>10}{'elsewhere':>11}{'during':>9}{'share':>8}{'calls':>7}"
)


def measure(flags: Sequence[str], seconds: float, nice: int) -> Figures:
    """Attack a new gateway, after a bare server.

    Raises:
        grpc.RpcError: an honest call was refused, or took 30 s.
    """
    from checkpoint.initial import create_checkpoint
    from checkpoint.presets import RESAMPLER_PRESETS

    with tempfile.TemporaryDirectory() as folder:
        create_checkpoint(Path(folder), "tiny-v1.0.0", RESAMPLER_PRESETS["tiny"])
        with open_door(Path(folder), "tiny-v1.0.0", Path(folder)) as door:
            before = door.call(seconds / 2)
            with open_sink() as sink, door.flood(flags, 60 + seconds, nice=nice, port=sink):
                time.sleep(1)
                elsewhere = door.call(seconds)
            memory = door.memory()
            door.forget_peak()
            with door.flood(flags, 60 + seconds, nice=nice):
                time.sleep(1)
                during = door.call(seconds)
            return Figures(memory, door.memory("VmHWM"), before, elsewhere, during)


def main() -> None:
    """Print memory and latency for each attack."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of calls during each attack")
    parser.add_argument("--attacker-nice", type=int, default=ATTACKER_NICE, help="priority of the attacker")
    parser.add_argument("--only", default="", help="part of the name of an attack")
    arguments = parser.parse_args()
    print(HEADER)
    for name, flags in FLOODS.items():
        if arguments.only in name:
            try:
                figures = str(measure(flags, arguments.seconds, arguments.attacker_nice))
            except grpc.RpcError as error:
                figures = f" an honest call failed: {error}"
            print(f"{name:30}{figures}", flush=True)


if __name__ == "__main__":
    main()
