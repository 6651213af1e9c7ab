"""Figures of the comparison of servers for questions about images."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from benchmarks.tools.report import Report, median_ratio

GIB = 1 << 30
OURS, PEER = "tandem", "vllm"
_RATIO = f" / {OURS}"  # of the peer's times, or of the memory
HOT_AIM, FLOOD_AIM = 3.0, 2.0


def fill(report: Report, measured: Mapping[str, Any], limits: Sequence[tuple[float, float]]) -> None:
    """Add the figures of all servers to the report.

    `limits` are the machine's matrix products, FLOP/s, and read bandwidth, bytes/s.
    """
    report.add("matrix products of this machine", statistics.median(one for one, _ in limits) / 1e12, "TFLOP/s")
    report.add("read bandwidth of this machine", statistics.median(one for _, one in limits) / 1e9, "GB/s")
    ours = measured[OURS]
    for size in ours.first_new_s:
        times = {name: one.first_new_s[size] for name, one in measured.items()}
        _compare_times(report, f"first token, new image of {size}", times)
        times = {name: [statistics.median(each) for each in one.first_known_s[size]] for name, one in measured.items()}
        _compare_times(report, f"first token, known image of {size}", times)
    for kind, attribute in (("new", "new_per_s"), ("hot", "hot_per_s")):
        for callers in ours.new_per_s:
            rates = {name: getattr(one, attribute)[callers] for name, one in measured.items()}
            _compare_rates(report, f"{kind} images, {callers} caller{'s' * (callers > 1)}", rates)
    _compare_with_uncached(report, ours)
    for percent in (50, 95):
        for kind, attribute in (("at rest", "text_s"), ("while images flood", "flooded_text_s")):
            times = {name: [_percentile(getattr(one, attribute), percent)] for name, one in measured.items()}
            aim = FLOOD_AIM if attribute == "flooded_text_s" else None
            _compare_times(report, f"first token of text {kind}, p{percent}", times, aim=aim)
    for name, one in measured.items():
        report.add(f"images answered during the flood: {name}", float(np.mean(one.flood_images)), "images")
    peaks = {name: one.peak_bytes / GIB for name, one in measured.items()}
    for name, peak in peaks.items():
        report.add(f"peak memory: {name}", peak, "GiB")
    if PEER in measured:
        _add_ratio(report, f"peak memory: {PEER}{_RATIO}", peaks[PEER] / peaks[OURS], 1.0)
        same = [one == other for one, other in zip(ours.first_texts, measured[PEER].first_texts, strict=True)]
        report.add("answers that begin with the same token", 100 * statistics.mean(same), "%")


def _compare_times(report: Report, name: str, times_s: Mapping[str, Sequence[float]], aim: float | None = 1.0) -> None:
    for server, each in times_s.items():
        report.add(f"{name}: {server}", 1000 * statistics.median(each), "ms")
    if PEER in times_s:
        _add_ratio(report, f"{name}: {PEER}{_RATIO}", median_ratio(times_s[PEER], times_s[OURS]), aim)


def _compare_rates(report: Report, name: str, rates: Mapping[str, Sequence[float]]) -> None:
    for server, each in rates.items():
        report.add(f"{name}: {server}", statistics.median(each), "requests/s")
    if PEER in rates:
        _add_ratio(report, f"{name}: {OURS} / {PEER}", median_ratio(rates[OURS], rates[PEER]), 1.0)


def _compare_with_uncached(report: Report, ours: Any) -> None:
    callers = max(ours.hot_per_s)
    name = f"hot images, {callers} caller{'s' * (callers > 1)}"
    report.add(f"{name}, without caches: {OURS}", statistics.median(ours.uncached_per_s), "requests/s")
    ratio = median_ratio(ours.hot_per_s[callers], ours.uncached_per_s)
    _add_ratio(report, f"{name}: with caches / without", ratio, HOT_AIM)


def _add_ratio(report: Report, name: str, ratio: float, aim: float | None) -> None:
    if aim is None:
        report.add(name, ratio, "x")
    else:
        report.add(name, ratio, "x", aim=f"at least {aim:g}", met=ratio >= aim)


def _percentile(rounds: Sequence[Sequence[float]], percent: float) -> float:
    return float(np.percentile([value for each in rounds for value in each], percent))


def plot(axes: Axes, report: Report) -> None:
    """Draw all ratios as bars, missed aims in red."""
    ratios = [figure for figure in report.figures if figure.unit == "x"][::-1]
    colours = ["tab:blue" if figure.met is not False else "tab:red" for figure in ratios]
    axes.barh([figure.name for figure in ratios], [figure.value for figure in ratios], color=colours)
    axes.axvline(1, color="black", linewidth=1)
    axes.set(xscale="log", xlabel="times as good as the other")
    axes.tick_params(axis="y", labelsize=6)
