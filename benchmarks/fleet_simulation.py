"""Plan a fleet of a thousand processes by simulation.

Time and the replicas' work are simulated. Decisions are real: routing, admission, the gateway's memory cache, the
accounting of KV blocks, the choice of a release and the guard are the project's own code. The times of the full-size
model are those that other benchmarks measured on two cores, divided by what an accelerator has more of memory bandwidth
and of matrix products.

The fleet consists of cells: some language replicas with their gateways, a vision stage and a Redis. Users spread over
cells, which know nothing of each other, so one cell is simulated with its share of the traffic.

First the simulation is compared with real processes, at the load of `benchmarks.replica_routing`. Conversations are
about images of Zipf-like popularity, have two turns on average, and each turn may reach any gateway.
"""

import itertools
import math
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from rich.progress import Progress

from benchmarks import replica_routing
from benchmarks.tools.fleet_report import (
    FIRST_TOKEN_AIM_MS,
    Results,
    add_fleet,
    add_traffic,
    compare_with_reality,
    plot,
)
from benchmarks.tools.fleet_tasks import (
    GATEWAYS_PER_REPLICA,
    LARGE_IMAGE,
    Settings,
    as_rows,
    cell_plan,
    day,
    incident,
    steady,
)
from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.simulated_time import simulate
from benchmarks.tools.simulated_users import Routed, Users, closed_loop
from gateway.stages.balance import by_prefix, least_busy

RATES = (40.0, 50.0, 60.0, 65.0, 70.0, 75.0)  # requests per second of a language replica


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, print and publish."""
    options = parse_arguments(
        "Plan a fleet of a thousand processes by simulation.",
        arguments,
        requests_per_s={"type": float, "default": 10_000.0, "help": "of the whole fleet, at the peak"},
        cell={"type": int, "default": 16, "help": "language replicas in a cell"},
        images={"type": int, "default": 1_000_000, "help": "images in the catalogue"},
        answer_tokens={"type": float, "default": 128.0, "help": "mean length of an answer"},
        bandwidth={"type": float, "default": 100.0, "help": "an accelerator's over the measured memory bandwidth"},
        compute={"type": float, "default": 1000.0, "help": "an accelerator's over the measured matrix products"},
        prices={"type": Path, "help": "TOML file of prices (default: examples)"},
    )
    if options.quick:
        options.cell = min(options.cell, 6)
    settings = Settings(
        bandwidth=options.bandwidth,
        compute=options.compute,
        window_s=5.0 if options.quick else 20.0,
        images=options.images,
        answer_tokens=options.answer_tokens,
    )
    with ProcessPoolExecutor(max_workers=2) as pool, Progress() as progress:
        results = run_all(settings, options, pool, progress)
    report = Report("fleet_simulation", f"A fleet for {options.requests_per_s:,.0f} requests/s, simulated")
    compare_with_reality(report, results)
    add_traffic(report, results)
    add_fleet(report, results, settings, options)
    report.details = {
        "settings": {name: str(value) for name, value in vars(options).items()},
        "gateways_per_cell": GATEWAYS_PER_REPLICA * options.cell,
        "sizing": as_rows(results.sizing),
        "incidents": {name: as_rows(windows) for name, windows in results.incidents.items()},
        "days": {str(size): as_rows(windows) for size, windows in results.days.items()},
    }
    report.publish(partial(plot, results), options.json)


def run_all(settings: Settings, options: Namespace, pool: ProcessPoolExecutor, progress: Progress) -> Results:
    """Simulate everything."""
    size, small = options.cell, max(3, options.cell // 2)
    plan = cell_plan(settings, size)
    bar = progress.add_task("sizing", total=None)
    routed = pool.submit(route_users)
    rates = RATES[::3] if options.quick else RATES
    sizing = list(pool.map(partial(steady, settings, plan), [rate * size for rate in rates]))
    per_replica = max(
        (rate for rate, one in zip(rates, sizing, strict=True) if one.first_p99_ms <= FIRST_TOKEN_AIM_MS),
        default=rates[0],
    )
    # With one zone lost, the others carry the peak.
    per_replica *= 2 / 3
    peak = per_replica * size
    progress.update(bar, description="days, incidents, rules")
    hours = 4 if options.quick else 24
    days = {
        one: pool.submit(day, settings, cell_plan(settings, one), per_replica * one, hours) for one in (size, small)
    }
    incidents = {name: pool.submit(incident, settings, plan, peak, name) for name in ("zone", "redis", "hot", "canary")}
    variants = {
        "prefix": (plan, "prefix"),
        "least busy": (plan, "least busy"),
        "prefix, own calls only": (cell_plan(settings, size, reported_loads=False), "prefix"),
        "encoder colocated": (cell_plan(settings, size, colocated=True), "prefix"),
        "large images": (cell_plan(settings, size, encode_factor=LARGE_IMAGE), "prefix"),
        "large images, encoder colocated": (
            cell_plan(settings, size, encode_factor=LARGE_IMAGE, colocated=True),
            "prefix",
        ),
    }
    rules = {name: pool.submit(steady, settings, one, peak, rule) for name, (one, rule) in variants.items()}
    cells = 2 if options.quick else math.ceil(options.requests_per_s / peak)
    all_cells = [pool.submit(steady, settings, plan, peak, "prefix", seed) for seed in range(cells)]
    return Results(
        routed=routed.result(),
        sizing=sizing,
        rules={name: task.result() for name, task in rules.items()},
        incidents={name: task.result() for name, task in incidents.items()},
        days={one: task.result() for one, task in days.items()},
        peak=[task.result() for task in all_cells],
        per_replica=per_replica,
    )


def route_users() -> dict[str, Routed]:
    """Simulate the load of `benchmarks.replica_routing`."""
    real = replica_routing.Plan()
    load = Users(
        users=replica_routing.USERS,
        images=real.num_images,
        rounds=real.rounds,
        requests=real.num_requests,
        answer_tokens=replica_routing.ANSWER_TOKENS,
        cache_bytes=replica_routing.CACHE_BYTES,
    )
    turns = itertools.count()
    four = replica_routing.REPLICAS
    return {
        replica_routing.ONE: simulate(closed_loop(load, by_prefix, 1)),
        replica_routing.PREFIX: simulate(closed_loop(load, by_prefix, four)),
        replica_routing.LEAST_BUSY: simulate(closed_loop(load, lambda calls, _: least_busy(calls, next(turns)), four)),
    }


if __name__ == "__main__":
    main()
