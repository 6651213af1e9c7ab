"""Figures, aims and plot of the decoding benchmark."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TypeVar

from matplotlib.axes import Axes

from benchmarks.peers.checkpoints import CACHE_BYTES_PER_TOKEN, WEIGHT_BYTES
from benchmarks.peers.comparison import STEPS, Results
from benchmarks.peers.engines import ENGINES
from benchmarks.peers.limits import Limits
from benchmarks.peers.workloads import BATCHES, PREFILL, Sample, Workload
from benchmarks.tools.report import Report

AIMS = {"tandem": 1.0, "tandem gRPC": 0.95}  # our engine -> speed relative to the best peer
BANDWIDTH_AIM = 0.85  # share of the read bandwidth, with one sequence
SHARED_AIM = 0.90  # share of the time to first token that a cached prefix saves
LIMIT_AIM = 1.25  # step time relative to the larger limit
_STEP_CONTEXT = 128  # tokens of context per sequence, in the figures over the number of sequences

Value = Callable[[Sample], float]
T = TypeVar("T")


def fill(report: Report, results: Results) -> None:
    """Add all figures and their samples to the report."""
    for name, state in results.states.items():
        if not results.samples or all(name not in taken for taken in results.samples.values()):
            report.add(f"{name}: {state.splitlines()[0]}", 0, "tokens/s")
    for workload in (*BATCHES, PREFILL):
        if workload.name in results.samples:
            _compare(report, workload, results.samples[workload.name])
    _add_bandwidth(report, results)
    _add_shared_prefix(report, results)
    _add_steps(report, results)
    _add_agreement(report, results)
    report.details = {
        "engines": results.states,
        "samples": {name: _plain(taken) for name, taken in results.samples.items()},
        "shared_prefix": _plain(results.shared),
        "step_s": [{"sequences": key[0], "context": key[1], "s": taken} for key, taken in results.step_s.items()],
        "read_bandwidth": results.read_bandwidth,
        "matmul_peaks": results.matmul_peaks,
    }


def _in_order(taken: Mapping[str, T]) -> list[tuple[str, T]]:
    """Return engines and values in the order of the table."""
    return [(kind.name, taken[kind.name]) for kind in ENGINES if kind.name in taken]


def _plain(taken: Mapping[str, Iterable[object]]) -> dict[str, list[dict[str, object]]]:
    return {name: [asdict(sample) for sample in samples] for name, samples in taken.items()}  # type: ignore[call-overload]


def rate_of(workload: Workload) -> Value:
    """Return a function that gives a sample's speed in tokens/s.

    It counts tokens of the answers, or of the prompts if each answer has one token.
    """
    length = workload.prompt_length if workload.num_tokens == 1 else workload.num_tokens
    return lambda sample: workload.num_prompts * length / sample.elapsed_s


def _compare(report: Report, workload: Workload, taken: Mapping[str, Sequence[Sample]]) -> None:
    """Add every engine's speed, and ours against the best peer's.

    The ratio is added for the whole request and for decoding alone.
    """
    rate = rate_of(workload)
    report.add(f"{workload.name}: rounds", max(map(len, taken.values())), "")
    for name, samples in _in_order(taken):
        report.add(f"{workload.name}: {name}", statistics.median(map(rate, samples)), "tokens/s")
    if (best := _best_peer(taken, rate)) is None:
        return
    for name, aim in AIMS.items():
        if name in taken:
            ratio = _ratio(taken[name], taken[best], rate)
            report.add(f"{workload.name}: {name} / {best}", ratio, "x", aim=f"at least {aim:g}", met=ratio >= aim)
    if all(sample.decode_rate for samples in taken.values() for sample in samples):
        decoding: Value = lambda sample: sample.decode_rate or 0.0  # noqa: E731
        best = _best_peer(taken, decoding) or best
        for name in AIMS:
            if name in taken:
                ratio = _ratio(taken[name], taken[best], decoding)
                report.add(f"{workload.name}, decoding only: {name} / {best}", ratio, "x")


def _best_peer(taken: Mapping[str, Sequence[Sample]], value: Value) -> str | None:
    medians = {name: statistics.median(map(value, samples)) for name, samples in taken.items() if name not in AIMS}
    return max(medians, key=lambda name: medians[name], default=None)


def _ratio(ours: Sequence[Sample], theirs: Sequence[Sample], value: Value) -> float:
    """Return the median ratio of samples from the same round.

    Ratios within a round do not depend on how the machine's speed changes between rounds.
    """
    return statistics.median(value(one) / value(other) for one, other in zip(ours, theirs, strict=False))


def _add_bandwidth(report: Report, results: Results) -> None:
    everything = [value for values in results.read_bandwidth.values() for value in values]
    report.add("read bandwidth", statistics.median(everything) / 1e9, "GB/s")
    report.add("matrix products", statistics.median(results.matmul_peaks) / 1e12, "TFLOP/s")
    alone = BATCHES[0]
    # A step reads all weights, and the keys and values of the prompt and (on average) half of the answer.
    step_bytes = WEIGHT_BYTES + CACHE_BYTES_PER_TOKEN * (alone.prompt_length + alone.num_tokens / 2)
    for name, samples in _in_order(results.samples[alone.name]):
        pairs = zip(samples, results.read_bandwidth[alone.name], strict=False)
        used = statistics.median((sample.decode_rate or 0) * step_bytes / bandwidth for sample, bandwidth in pairs)
        aim = f"at least {100 * BANDWIDTH_AIM:g}" if name == "tandem" else ""
        met = used >= BANDWIDTH_AIM if aim else None
        report.add(f"{alone.name}: {name}, share of the read bandwidth", 100 * used, "%", aim=aim, met=met)


def _add_shared_prefix(report: Report, results: Results) -> None:
    for name, samples in _in_order(results.shared):
        first_s = statistics.median(sample.first_s for sample in samples)
        later_s = statistics.median(sample.later_s for sample in samples)
        saved = 1 - later_s / first_s
        report.add(f"shared prefix: {name}, time to first token when new", 1000 * first_s, "ms")
        aim = f"at least {100 * SHARED_AIM:g}" if name in AIMS else ""
        met = saved >= SHARED_AIM if aim else None
        report.add(f"shared prefix: {name}, time saved when cached", 100 * saved, "%", aim=aim, met=met)


def _add_steps(report: Report, results: Results) -> None:
    """Add step times over sequences and context, and their limits."""
    limits = _limits(results)
    aim = f"at most {LIMIT_AIM:g}"
    for (count, context), taken in sorted(results.step_s.items()):
        cost_s, name = statistics.median(taken), f"step time, {_plural(count, 'sequence')} of {context}"
        report.add(name, 1000 * cost_s, "ms")
        ratio = cost_s / limits.step_s(count, context)
        reads = limits.reading_s(count, context) >= limits.arithmetic_s(count, context)
        bound = "read bandwidth" if reads else "matrix products"
        report.add(f"{name} / limit by {bound}", ratio, "x", aim=aim, met=ratio <= LIMIT_AIM)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _limits(results: Results) -> Limits:
    """Return the limits while the steps were measured."""
    everything = [value for values in results.read_bandwidth.values() for value in values]
    return Limits(
        read_bandwidth=statistics.median(results.read_bandwidth.get(STEPS, everything)),
        matmul_peak=statistics.median(results.matmul_peaks),
    )


def _add_agreement(report: Report, results: Results) -> None:
    """Add how often each engine's first token equals ours.

    All engines compute the same model, but round differently.
    """
    counts: dict[str, list[bool]] = {}
    for taken in results.samples.values():
        for name, samples in _in_order(taken):
            pairs = zip(samples, taken.get("tandem", []), strict=False) if name != "tandem" else ()
            for sample, ours in pairs:
                same = [x == y for x, y in zip(sample.first_token_ids, ours.first_token_ids, strict=True)]
                counts.setdefault(name, []).extend(same)
    for name, same in counts.items():
        share = 100 * statistics.mean(same)
        report.add(f"first tokens: {name} equal to tandem", share, "%", aim="more than 50", met=share > 50)


def plot(axes: Axes, results: Results) -> None:
    """Plot tokens/s over the number of sequences, per engine.

    Steps are plotted with both their limits.
    """
    for kind in ENGINES:
        points = {
            workload.num_prompts: statistics.median(map(rate_of(workload), results.samples[workload.name][kind.name]))
            for workload in BATCHES
            if kind.name in results.samples.get(workload.name, {})
        }
        if points:
            style = "o-" if kind.is_ours else "o--"
            axes.plot(list(points), list(points.values()), style, label=kind.name)
    _plot_steps(axes, results)
    axes.set(xlabel="sequences at once, 128 tokens in and 64 out", ylabel="tokens/s", xscale="log", yscale="log")
    axes.legend()


def _plot_steps(axes: Axes, results: Results) -> None:
    steps = {count: taken for (count, context), taken in sorted(results.step_s.items()) if context == _STEP_CONTEXT}
    if not steps:
        return
    counts, limits = list(steps), _limits(results)
    axes.plot(counts, [count / statistics.median(steps[count]) for count in counts], "s-", label="tandem, steps alone")
    for name, marker, limit_s in (
        ("read bandwidth", "", limits.reading_s),
        ("matrix products", "x", limits.arithmetic_s),
    ):
        rates = [count / limit_s(count, _STEP_CONTEXT) for count in counts]
        axes.plot(counts, rates, ":", color="grey", marker=marker, label=f"limit by {name}")
