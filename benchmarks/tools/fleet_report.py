"""The figures of a simulated fleet, and its size and price."""

import json
import math
from argparse import Namespace
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes

from benchmarks import replica_routing
from benchmarks.tools.fleet_costs import Demand, Fleet, break_even, fleet_for, per_million, read_prices
from benchmarks.tools.fleet_tasks import CANARY_ERRORS, HOT_SHARE, LARGE_IMAGE, Settings, Window, of_peak
from benchmarks.tools.measured_times import full_size_times
from benchmarks.tools.report import RESULTS, Report
from benchmarks.tools.simulated_users import Routed

FIRST_TOKEN_AIM_MS = 300.0
ROUTING_AIM_POINTS = 5.0
KV_TOKEN_BYTES = 2 * 32 * 8 * 128 * 2  # keys and values of the full-size model: layers, heads, elements, bytes


@dataclass(frozen=True, slots=True)
class Results:
    """All simulated windows."""

    routed: dict[str, Routed]
    sizing: list[Window]
    rules: dict[str, Window]
    incidents: dict[str, list[Window]]
    days: dict[int, list[Window]]  # by size of the cell
    peak: list[Window]  # of all cells
    per_replica: float  # the rate of a language replica that the fleet is sized for


def compare_with_reality(report: Report, results: Results) -> None:
    """Add simulated figures beside those of real processes."""
    figures = json.loads((RESULTS / "replica_routing.json").read_text())["figures"]
    real = {one["name"]: one["value"] for one in figures}
    for name, one in results.routed.items():
        measured = real[f"{name}: prompt tokens from the KV cache"]
        report.add(f"{name}: prompt tokens from the KV cache, real processes", measured, "%")
        report.add(
            f"{name}: the same, simulated",
            one.hit_rate,
            "%",
            aim="within 3 points",
            met=abs(one.hit_rate - measured) <= 3,
        )
        report.add(f"{name}: queue p99, real processes", real[f"{name}: time in the queue p99"], "ms")
        report.add(f"{name}: the same, simulated", one.queue_p99_ms, "ms")
    one, prefix = results.routed[replica_routing.ONE], results.routed[replica_routing.PREFIX]
    lost = one.hit_rate - prefix.hit_rate
    report.add(
        "lost by four replicas by prefix, simulated",
        lost,
        "points",
        aim=f"at most {ROUTING_AIM_POINTS:g}",
        met=lost <= ROUTING_AIM_POINTS,
    )


def add_traffic(report: Report, results: Results) -> None:
    """Add the windows of one cell and of all."""
    for one in results.sizing:
        report.add(f"one cell at {one.rate:,.0f} requests/s: first token p99", one.first_p99_ms, "ms")
    for name, one in results.rules.items():
        report.add(f"{name}: first token p99", one.first_p99_ms, "ms")
        report.add(f"{name}: prompt tokens from the KV cache", one.hit_rate, "%")
    failed, arrived = sum(one.failed for one in results.peak), sum(one.arrived for one in results.peak)
    worst = max(one.first_p99_ms for one in results.peak)
    report.add(f"the peak in all {len(results.peak)} cells: requests", arrived, "requests")
    report.add("the peak in all cells: failed", failed, "requests", aim="0", met=failed == 0)
    report.add(
        "the peak in all cells: first token p99 of the worst",
        worst,
        "ms",
        aim=f"at most {FIRST_TOKEN_AIM_MS:g}",
        met=worst <= FIRST_TOKEN_AIM_MS,
    )
    for size, windows in results.days.items():
        report.add(f"a day, cell of {size}: failed", sum(one.failed for one in windows), "requests")
        report.add(f"a day, cell of {size}: worst first token p99", max(one.first_p99_ms for one in windows), "ms")
        report.add(f"a day, cell of {size}: prompt tokens from the KV cache, last hour", windows[-1].hit_rate, "%")
        report.add(f"a day, cell of {size}: images from the gateway's memory", windows[-1].in_memory, "%")
        report.add(f"a day, cell of {size}: images from Redis", windows[-1].in_redis, "%")
        report.add(f"a day, cell of {size}: images encoded, last hour", windows[-1].encoded, "%")
    add_incidents(report, results)


def add_incidents(report: Report, results: Results) -> None:
    """Add the windows before and after each incident."""
    names = {
        "zone": "a zone lost",
        "redis": "Redis lost",
        "hot": f"one new image in {HOT_SHARE:.0%} of the conversations",
        "canary": f"a canary at 1 % that fails {CANARY_ERRORS:.0%}",
    }
    for name, windows in results.incidents.items():
        failed, arrived = sum(one.failed for one in windows), sum(one.arrived for one in windows[1:])
        is_harmless = name in ("redis", "hot")
        report.add(
            f"{names[name]}: failed",
            failed,
            f"of {arrived:,} requests",
            aim="0" if is_harmless else "",
            met=failed == 0 if is_harmless else None,
        )
        for number, one in enumerate(windows[1:], start=1):
            report.add(f"{names[name]}: first token p99 in window {number} after it", one.first_p99_ms, "ms")
            report.add(f"{names[name]}: first token after more than 1 s, window {number}", one.slow, "%")
        if name == "redis":
            report.add(f"{names[name]}: images encoded before", windows[0].encoded, "%")
            report.add(f"{names[name]}: images encoded after", windows[-1].encoded, "%")
        if name == "canary":
            decided_s, lasted_s = windows[-1].seconds, sum(one.arrived / one.rate for one in windows[1:])
            report.add(
                f"{names[name]}: rolled back after",
                lasted_s if decided_s is None else decided_s,
                "s",
                aim="rolled back",
                met=decided_s is not None,
            )


def add_fleet(report: Report, results: Results, settings: Settings, options: Namespace) -> None:
    """Add replicas by stage, prices and the break-even."""
    prices = read_prices(options.prices)
    overhead = json.loads((RESULTS / "gateway_overhead.json").read_text())["figures"]
    # With the most streams, since they come last.
    *_, gateway_us = (one["value"] for one in overhead if one["unit"] == "us/token" and "gateway" in one["name"])
    last = results.days[options.cell][-1]
    times = full_size_times(settings.bandwidth, settings.compute, np.random.default_rng(0))
    demand = Demand(
        requests_per_s=options.requests_per_s,
        tokens_per_request=settings.answer_tokens,
        misses=last.encoded / 100,
        requests_per_replica=results.per_replica * 3 / 2,
        encode_s=float(np.mean(times.images_s)),
        gateway_token_s=gateway_us / 1e6,
        redis_gib=16.0 * math.ceil(options.requests_per_s / (results.per_replica * options.cell)),
    )
    fleet, colocated = fleet_for(demand, prices), fleet_for(demand, prices, colocated=True)
    for name, number in (("language", fleet.language), ("vision", fleet.vision), ("gateway", fleet.gateway)):
        report.add(
            f"needed for the peak with a zone lost: {name}", number, "cores" if name == "gateway" else "replicas"
        )
    report.add("the same without a vision stage: language", colocated.language, "replicas")
    mean = options.requests_per_s * float(np.mean([of_peak(hour) for hour in range(24)]))
    autoscaled = [_scaled(fleet, of_peak(hour)) for hour in range(24)]
    report.add("price of a million questions, sized for the peak", per_million(fleet, prices, mean), "currency units")
    report.add(
        "the same, scaled every hour",
        float(np.mean([one.cost_h(prices) for one in autoscaled])) / (3600 * mean) * 1e6,
        "currency units",
    )
    report.add(
        "the same, sized for the peak, encoder colocated", per_million(colocated, prices, mean), "currency units"
    )
    ratio = prices.vision_slowdown * prices.vision_h / prices.accelerator_h
    report.add("an image in a vision stage over one in the language stage", ratio, "x the price")
    same = replace(prices, vision_slowdown=1.0, vision_h=prices.accelerator_h)
    name = "a vision stage on the accelerators of the language stage costs no more from"
    report.add(name, break_even(demand, same), "requests/s")
    large = replace(demand, encode_s=LARGE_IMAGE * demand.encode_s)
    report.add("the same with large images", break_even(large, same), "requests/s")
    speed = KV_TOKEN_BYTES / times.prefill_token_s / 1e9
    report.add("blocks of the KV cache travel faster than they are computed from", speed, "GB/s")


def _scaled(fleet: Fleet, share: float) -> Fleet:
    """Return a fleet for a share of the peak."""
    return Fleet(
        language=math.ceil(fleet.language * share),
        vision=max(3, math.ceil(fleet.vision * share)),
        gateway=math.ceil(fleet.gateway * share),
        redis_gib=fleet.redis_gib,
    )


def plot(results: Results, axes: Axes) -> None:
    """Draw the first token's p99 over the rate."""
    for size, windows in results.days.items():
        axes.plot(
            [one.rate / size for one in windows],
            [one.first_p99_ms for one in windows],
            ".",
            label=f"hours of a day, cell of {size}",
        )
    size = next(iter(results.days))
    axes.plot(
        [one.rate / size for one in results.sizing], [one.first_p99_ms for one in results.sizing], "o-", label="sizing"
    )
    for name, one in results.rules.items():
        axes.plot(one.rate / size, one.first_p99_ms, "x", label=name)
    axes.axhline(FIRST_TOKEN_AIM_MS, color="grey", linewidth=0.5)
    axes.set(xlabel="requests/s of a language replica", ylabel="first token p99, ms", yscale="log")
    axes.legend(fontsize=7)
