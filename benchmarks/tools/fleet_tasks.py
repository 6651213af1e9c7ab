"""Simulated windows of a cell, as tasks for a pool of processes."""

import itertools
import math
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

import numpy as np

from benchmarks.tools.measured_times import MeasuredTimes, full_size_times
from benchmarks.tools.simulated_cell import Cell
from benchmarks.tools.simulated_gateway import CellPlan, Choose, Tally
from benchmarks.tools.simulated_time import simulate
from gateway.stages.balance import by_prefix, least_busy

T = TypeVar("T")

WARM_UP_S = 20.0
HOT_SHARE = 0.2
CANARY_ERRORS = 0.1
# Cores of a gateway for one language replica, by the processor time of a token.
GATEWAYS_PER_REPLICA = 3
LARGE_IMAGE = 17.0  # times the work of an image: 1024 x 768 for Qwen3-VL against 224 x 224, `vision_tower`


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of all windows."""

    bandwidth: float
    compute: float
    window_s: float
    images: int
    answer_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The requests of one window."""

    name: str
    rate: float
    arrived: int
    failed: int
    first_p50_ms: float
    first_p99_ms: float
    slow: float  # first tokens after more than a second, percent
    queue_p99_ms: float
    token_p99_ms: float
    hit_rate: float  # prompt tokens from the KV cache, percent
    in_memory: float  # images in the memory of the gateway, percent
    in_redis: float
    in_vision: float
    encoded: float
    seconds: float | None = None  # until a rollout was decided


def cell_plan(settings: Settings, replicas: int, **changes: Any) -> CellPlan:
    """Return a cell of some language replicas."""
    plan = CellPlan(
        language=replicas,
        vision=3,
        gateways=GATEWAYS_PER_REPLICA * replicas,
        images=settings.images,
        answer_tokens=settings.answer_tokens,
    )
    return replace(plan, **changes)


def steady(settings: Settings, plan: CellPlan, rate: float, rule: str = "prefix", seed: int = 0) -> Window:
    """Simulate a window at a constant rate, requests per second."""

    async def run(cell: Cell) -> Window:
        await cell.play(rate, WARM_UP_S)
        return window("steady", rate, await cell.play(rate, settings.window_s))

    return _simulated(settings, plan, run, rule, seed)


def day(settings: Settings, plan: CellPlan, peak: float, hours: int = 24) -> list[Window]:
    """Simulate a day, one window for each hour."""

    async def run(cell: Cell) -> list[Window]:
        await cell.play(peak / 2, WARM_UP_S)
        tallies = []
        for hour in range(hours):
            rate = peak * of_peak(hour * 24 / hours)
            tallies.append((f"{hour * 24 // hours}:00", rate, await cell.play(rate, settings.window_s)))
        await cell.close()
        return [window(*tally) for tally in tallies]

    return _simulated(settings, plan, run)


def incident(settings: Settings, plan: CellPlan, rate: float, name: str) -> list[Window]:
    """Simulate a window before an incident, and windows after it."""

    async def run(cell: Cell) -> list[Window]:
        await cell.play(rate, WARM_UP_S)
        tallies = [await cell.play(rate, settings.window_s)]
        rollout = None
        if name == "zone":
            cell.lose_zone()
        elif name == "redis":
            cell.redis.is_lost = True
        elif name == "hot":
            cell.make_hot(plan.images - 1, HOT_SHARE)
        elif name == "canary":
            rollout = cell.start_rollout(CANARY_ERRORS)
        tallies += [await cell.play(rate, settings.window_s) for _ in range(2)]
        await cell.close()
        windows = [window(f"{name} {number}", rate, tally) for number, tally in enumerate(tallies)]
        if rollout is not None:
            windows[-1] = replace(windows[-1], seconds=rollout.ended_s)
        return windows

    return _simulated(settings, plan, run)


def of_peak(hour: float) -> float:
    """Return an hour's share of the peak at 20:00."""
    return 0.6 + 0.4 * math.cos((hour - 20) / 12 * math.pi)


def window(name: str, rate: float, tally: Tally) -> Window:
    """Sum up a window."""
    first, queue = np.percentile(tally.first_token_s, [50, 99]), np.percentile(tally.queue_s, 99)
    return Window(
        name=name,
        rate=rate,
        arrived=tally.arrived,
        failed=tally.failed,
        first_p50_ms=1000 * float(first[0]),
        first_p99_ms=1000 * float(first[1]),
        slow=100 * float(np.mean(np.array(tally.first_token_s) > 1)),
        queue_p99_ms=1000 * float(queue),
        token_p99_ms=1000 * float(np.percentile(tally.token_s, 99)),
        hit_rate=tally.hit_rate(),
        in_memory=tally.level("gateway"),
        in_redis=tally.level("shared"),
        in_vision=tally.level("vision", "in_flight"),
        encoded=tally.level("miss"),
    )


def as_rows(windows: list[Window]) -> list[dict[str, Any]]:
    """Return windows as plain data."""
    return [asdict(one) for one in windows]


def _simulated(
    settings: Settings,
    plan: CellPlan,
    run: Callable[[Cell], Coroutine[Any, Any, T]],
    rule: str = "prefix",
    seed: int = 0,
) -> T:
    async def start() -> T:
        random = np.random.default_rng([seed, plan.language])
        times: MeasuredTimes = full_size_times(settings.bandwidth, settings.compute, random)
        times.images_s = tuple(plan.encode_factor * seconds for seconds in times.images_s)
        return await run(Cell(plan, times, random, router=_router(rule)))

    return simulate(start())


def _router(rule: str) -> Callable[[], Choose]:
    """Return the maker of a rule: 'prefix' or 'least busy'."""
    if rule == "prefix":
        return lambda: by_prefix
    turns = itertools.count()
    return lambda: lambda loads, _: least_busy(loads, next(turns))
