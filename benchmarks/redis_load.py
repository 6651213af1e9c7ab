"""Commands, bytes and processor time that a fleet costs its Redis.

The gateway's own classes talk to a real server, which counts. Counts do not depend on the load of the machine, and
processor time hardly does. They are then multiplied by the rates of a cell of `benchmarks.fleet_simulation`, and of all
its cells with one Redis.

A gateway that shares rollouts reads the state and reports itself five times a second, and gets the reports of all other
gateways back. So this part grows with the square of the gateways.
"""

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import redis
from matplotlib.axes import Axes

from benchmarks.tools.report import RESULTS, Report, parse_arguments
from gateway.images.entry import Entry, ExpectedTokens, TokenShape
from gateway.images.redis_cache import RedisCache
from gateway.images.shared_images import SharedImages
from gateway.images.shared_redis import SharedRedis
from gateway.rollout.policy.controller import begin, start
from gateway.rollout.policy.counts import Counts, Outcome
from gateway.rollout.policy.plan import read_plan
from gateway.rollout.policy.probing import Probing
from gateway.rollout.redis_store import RedisStore
from gateway.rollout.stored_format import Document, Heartbeat
from tandem.v1 import tensor_pb2
from tests.gateway.redis_server import RedisServer

TOKENS, WIDTH = 32, 4096
IMAGE_BYTES = 200_000
TICKS_PER_S = 5  # of a gateway
GATEWAYS = (8, 32, 96, 288)
PATIENT_S = 10.0  # a busy machine must not change the counts
TICK_ANSWERS = 20  # of one gateway in a fifth of a second, during a rollout

Operation = Callable[[], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of one operation for the server."""

    commands: float
    bytes_in: float
    bytes_out: float
    cpu_us: float

    def times(self, rate: float) -> "Cost":
        """Return the cost of a second with `rate` operations."""
        return Cost(self.commands * rate, self.bytes_in * rate, self.bytes_out * rate, self.cpu_us * rate)

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))


async def cost_of(client: redis.Redis, operation: Operation, count: int) -> Cost:
    """Return the mean cost of an operation."""

    def snapshot() -> np.ndarray[Any, np.dtype[np.float64]]:
        info: Any = client.info()
        cpu_us = 1e6 * (info["used_cpu_user"] + info["used_cpu_sys"])
        counters = info["total_commands_processed"], info["total_net_input_bytes"], info["total_net_output_bytes"]
        return np.array([*counters, cpu_us])

    await operation()  # connects, and loads scripts
    idle = -(snapshot() - snapshot())  # the cost of a snapshot itself
    before = snapshot()
    for _ in range(count):
        await operation()
    return Cost(*np.maximum(0, (snapshot() - before - idle) / count).tolist())


def visual_tokens(number: int) -> tuple[ExpectedTokens, Entry]:
    """Return visual tokens and the expected ones."""
    key, digest = hashlib.sha256(b"%d" % number).digest(), bytes(32)
    # The upper half of a float32 is a bfloat16.
    data = np.random.default_rng(number).standard_normal((TOKENS, WIDTH)).astype("<f4").view("<u2")[:, 1::2].tobytes()
    embeddings = tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_BFLOAT16, shape=[TOKENS, WIDTH], data=data)
    tokens = tensor_pb2.VisualTokens(visual_key=key, vision_digest=digest, embeddings=embeddings)
    expected = ExpectedTokens(
        visual_key=key, vision_digest=digest, shape=TokenShape(num_visual_tokens=TOKENS), token_width=WIDTH
    )
    return expected, Entry.of(tokens.SerializeToString())


async def images(server: RedisServer, count: int) -> dict[str, Cost]:
    """Measure visual tokens and uploads."""
    shared = SharedRedis(server.url, timeout_s=PATIENT_S, pause_s=1)
    cache, uploads = RedisCache(shared, ttl_s=600), SharedImages(shared, max_bytes=1 << 28, ttl_s=600)
    expected, entry = visual_tokens(0)
    absent, _ = visual_tokens(1)
    image = np.random.default_rng(0).bytes(IMAGE_BYTES)
    sha256 = hashlib.sha256(image).digest()

    async def put() -> None:
        cache.put(expected.visual_key, entry)
        await cache.close()  # waits for the write

    operations: dict[str, Operation] = {
        "visual tokens, miss": lambda: cache.get(absent),
        "visual tokens, write": put,
        "visual tokens, hit": lambda: cache.get(expected),
        "upload": lambda: uploads.put(sha256, image, b"salt"),
        "upload at another gateway": lambda: uploads.get(sha256, b"salt"),
    }
    costs = {name: await cost_of(server.client, operation, count) for name, operation in operations.items()}
    await shared.close()
    return costs


async def ticks(server: RedisServer, gateways: int, count: int) -> dict[str, Cost]:
    """Measure a tick of one of several gateways."""
    async with AsyncExitStack() as stack:
        # No time passes for it, so no gateway is taken for dead during a slow measurement.
        store = RedisStore(server.url, prefix=f"of-{gateways}", timeout_s=PATIENT_S, clock=lambda: 0.0)
        stack.push_async_callback(store.close)
        await store.compare_and_set(0, running_rollout())
        for number in range(gateways):
            await store.heartbeat(heartbeat(number))
        answers = {
            hashlib.sha256(b"%d" % number).hexdigest(): "demo-v1.0.0\nstable\n1" for number in range(TICK_ANSWERS)
        }

        async def idle() -> None:
            await store.read()
            await store.heartbeat(heartbeat(0))

        async def rolling() -> None:
            await idle()
            await store.add("1", counts())
            await store.remember(answers, 3600)

        return {
            "idle": await cost_of(server.client, idle, count),
            "rolling": await cost_of(server.client, rolling, count),
        }


def heartbeat(number: int) -> Heartbeat:
    """Return the report of one gateway."""
    return Heartbeat(
        gateway=f"{number:016x}",
        version=1,
        in_use=("demo-v1.0.0", "demo-v1.1.0"),
        waiting={"stable": number % 50, "canary": number % 3},
    )


def running_rollout() -> Document:
    """Return a stored rollout in its first step."""
    steps = [{"weight_percent": weight, "seconds": 60} for weight in (1, 5, 25, 50, 100)]
    plan = read_plan(
        {"stable": "demo-v1.0.0", "canary": "demo-v1.1.0", "steps": steps, "guard": {"max_error_rate_increase": 0.02}}
    )
    state = begin(None, plan, in_force="demo-v1.0.0", rollout_id="0123456789abcdef", now_s=0)
    return Document(version=1, state=start(state, 0, Probing(problem="There are none.")))


def counts() -> Counts:
    """Return the counts of one gateway in a tick."""
    random, total = np.random.default_rng(0), Counts()
    for first_s, gap_s in random.lognormal((-1.6, -3.5), (0.5, 0.2), (TICK_ANSWERS, 2)).tolist():
        outcome = Outcome(
            kind="images at hand", failed=False, empty=False, first_token_s=first_s, inter_token_s=gap_s, num_tokens=128
        )
        total.add_outcome("stable", outcome)
    return total


def extrapolate(report: Report, costs: dict[str, Cost], by_gateways: dict[int, dict[str, Cost]]) -> None:
    """Multiply the costs by the rates of cells."""
    fleet = json.loads((RESULTS / "fleet_simulation.json").read_text())["details"]
    size = int(fleet["settings"]["cell"])
    row = max(fleet["days"][str(size)], key=lambda one: float(one["rate"]))  # the hour of the peak
    cells = int(np.ceil(float(fleet["settings"]["requests_per_s"]) / row["rate"]))
    gateways = int(fleet["gateways_per_cell"])
    for name, number in (("one cell", 1), (f"all {cells} cells with one Redis", cells)):
        rate = row["rate"] * number
        total = (
            costs["visual tokens, hit"].times(rate * row["in_redis"] / 100)
            + costs["visual tokens, miss"].times(rate * (row["in_vision"] + row["encoded"]) / 100)
            + costs["visual tokens, write"].times(rate * (row["in_vision"] + row["encoded"]) / 100)
        )
        add_second(report, f"{name}, {rate:,.0f} requests/s: images", total)
        for phase in ("idle", "rolling"):
            tick = at(by_gateways, phase, gateways * number)
            add_second(
                report,
                f"{name}, {gateways * number:,} gateways: rollout store, {phase}",
                tick.times(TICKS_PER_S * gateways * number),
            )


def at(by_gateways: dict[int, dict[str, Cost]], phase: str, gateways: int) -> Cost:
    """Return the cost of a tick by a fitted line."""
    sizes = list(by_gateways)
    columns = zip(*(asdict(by_gateways[size][phase]).values() for size in sizes), strict=True)
    return Cost(*(float(np.polyval(np.polyfit(sizes, column, 1), gateways)) for column in columns))


def add_second(report: Report, name: str, second: Cost) -> None:
    """Add the cost of a second."""
    report.add(f"{name}: commands", second.commands, "/s")
    report.add(f"{name}: to Redis", second.bytes_in / 1e6, "MB/s")
    report.add(f"{name}: from Redis", second.bytes_out / 1e6, "MB/s")
    report.add(f"{name}: of one core", second.cpu_us / 1e4, "%")


async def measure(count: int) -> tuple[dict[str, Cost], dict[int, dict[str, Cost]]]:
    """Measure all operations with a server of their own."""
    with tempfile.TemporaryDirectory() as folder, RedisServer(Path(folder)) as server:
        return await images(server, count), {size: await ticks(server, size, count // 5) for size in GATEWAYS}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments("Count the load of a fleet on its Redis.", arguments)
    costs, by_gateways = asyncio.run(measure(50 if options.quick else 500))
    report = Report("redis_load", "What Redis carries")
    rows = costs | {
        f"tick of one of {size} gateways, {phase}": cost
        for size, both in by_gateways.items()
        for phase, cost in both.items()
    }
    for name, cost in rows.items():
        report.add(f"{name}: commands", cost.commands, "")
        report.add(f"{name}: to Redis", cost.bytes_in / 1000, "kB")
        report.add(f"{name}: from Redis", cost.bytes_out / 1000, "kB")
        report.add(f"{name}: processor time of Redis", cost.cpu_us, "us")
    extrapolate(report, costs, by_gateways)
    report.details = {name: asdict(cost) for name, cost in rows.items()}

    def plot(axes: Axes) -> None:
        sizes = np.arange(1, 1001)
        for phase in ("idle", "rolling"):
            seconds = [at(by_gateways, phase, int(size)).times(TICKS_PER_S * float(size)) for size in sizes]
            axes.plot(sizes, [second.cpu_us / 1e4 for second in seconds], label=f"rollout store, {phase}")
        axes.axhline(100, color="grey", linewidth=0.5)
        axes.set(xlabel="gateways with one Redis", ylabel="of one core of Redis, %", yscale="log", xscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
