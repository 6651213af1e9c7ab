"""Measure a gateway under floods of large bodies.

    python -m tests.hostile.door [--seconds 20]

prints memory and the latency of an honest caller for each attack. A tiny checkpoint is enough: nothing reaches a model.
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
# Attacks by name. {key} is that of a tenant, other than the honest caller's.
FLOODS = {
    "refused bodies, no key": ["--connections", "200"],
    "trickling bodies, no key": ["--connections", "200", "--trickle"],
    "one connection, no key": ["--connections", "1", "--streams", "900", "--trickle"],
    "health checks, no key": ["--connections", "200", "--method", "/grpc.health.v1.Health/Check"],
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
    def flood(self, flags: Sequence[str], seconds: float) -> Iterator[None]:
        """Attack within the block.

        All connections are open at its start.

        Args:
            flags: of `tests.hostile.flood`.
            seconds: longest time.
        """
        command = [sys.executable, "-m", "tests.hostile.flood", "--port", str(self.port), "--seconds", str(seconds)]
        attack = subprocess.Popen(
            [*command, *(flag.format(key=self.hostile_key) for flag in flags)], stdout=subprocess.PIPE, text=True
        )
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


def _drain(log: IO[str]) -> None:
    """Read a log, so that it never fills the pipe."""
    with log:
        log.read()


def p99(times: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return sorted(times)[math.ceil(0.99 * len(times)) - 1]


def main() -> None:
    """Print memory and latency for each attack."""
    from checkpoint.initial import create_checkpoint
    from checkpoint.presets import RESAMPLER_PRESETS

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=10, help="of calls during each attack")
    parser.add_argument("--only", default="", help="part of the name of an attack")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    print(f"{'attack':34}{'memory before':>14}{'most':>8}{'p99 before':>12}{'during':>10}{'calls':>7}")
    for name, flags in FLOODS.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            create_checkpoint(Path(folder), "tiny-v1.0.0", RESAMPLER_PRESETS["tiny"])
            with open_door(Path(folder), "tiny-v1.0.0", Path(folder)) as door:
                before = door.call(seconds / 2)
                memory = door.memory()
                door.forget_peak()
                with door.flood(flags, 60 + seconds):
                    time.sleep(1)
                    try:
                        during = door.call(seconds)
                    except grpc.RpcError as error:
                        print(name, error)
                        continue
                most = door.memory("VmHWM")
        print(
            f"{name:34}{memory:10.0f} MiB{most:8.0f}{1000 * p99(before):9.1f} ms{1000 * p99(during):7.1f} ms"
            f"{len(during):7}",
            flush=True,
        )


if __name__ == "__main__":
    main()
