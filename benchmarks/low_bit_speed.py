"""Decoding speed with 8 and 4 bits a weight.

    make .peers/vllm/ready .peers/llama_cpp/ready  # once: installs the peers, without them only ours are measured
    python -m benchmarks.low_bit_speed             # twenty minutes on two idle cores
    python -m benchmarks.low_bit_speed --quick     # one round of three of our forms, up to 8 sequences

It is compared with bfloat16, vLLM, llama.cpp and the read bandwidth. Every decoder has Qwen3 0.6B's shape, random
weights and two threads, and runs in its own engine in a process of its own. In each round all take turns, and the
script measures the read bandwidth. They decode 64 tokens after 128. The speed is that of decoding alone, while all
sequences decode.

The peers have the formats nearest to ours: W8A8 of compressed-tensors, whose head stays in bfloat16, and Q8_0 and Q4_0
of llama.cpp. Q4_0 has groups of 32 too, and rounds the activations to 8 bits like our w4a8.

Each processor and instruction set has its own results: `results/low_bit_speed-PROCESSOR-KERNELS.json`.
"""

import os
import statistics
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import Progress

from benchmarks.peers.checkpoints import (
    CACHE_BYTES_PER_TOKEN,
    LOW_BIT_FORMS,
    TAG,
    low_bit_tag,
    make_low_bit_checkpoints,
)
from benchmarks.peers.engines import LOW_BIT_PEERS, EngineKind
from benchmarks.peers.process import EngineFailed, EngineProcess
from benchmarks.peers.workloads import BATCHES, Workload, measure
from benchmarks.tools.decoder_steps import weight_bytes_per_step
from benchmarks.tools.machine import read_bandwidth
from benchmarks.tools.processor import processor_name, processor_slug
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from checkpoint.manifest import read_manifest, read_verified_config
from checkpoint.store import ModelStore

BANDWIDTH_AIM = 0.80  # share of the read bandwidth, with one sequence
SPEEDUP_AIM = 1.2  # of 4 bits over bfloat16, with 32 sequences
FULL, BYTES, NIBBLES, ROUNDED = "bf16", "w8a8", "w4a16-g32", "w4a8-g32"
WORKLOADS = BATCHES[:3]  # of 1, 8 and 32 sequences
MOST = WORKLOADS[-1].num_prompts
# Our form -> the peers with as many bits, and the numbers of sequences with an aim.
PEERS = {
    BYTES: (("vllm w8a8", "llama.cpp Q8_0"), (1, 8, 32)),
    NIBBLES: (("llama.cpp Q4_0",), (1,)),
    ROUNDED: (("llama.cpp Q4_0",), (1,)),
}

Rates = dict[tuple[str, int], list[float]]  # by decoder and sequences: tokens/s of each round


@dataclass(slots=True)
class Measured:
    """All rounds of a run."""

    rates: Rates = field(default_factory=dict)
    bandwidths: list[float] = field(default_factory=list)  # bytes/s
    loads: list[float] = field(default_factory=list)  # of the machine, before each round
    states: dict[str, str] = field(default_factory=dict)  # by decoder: its version, or why it failed

    def best(self, names: Iterable[str], count: int) -> str | None:
        """Return the fastest of some decoders, if any ran."""
        medians = {name: statistics.median(self.rates[name, count]) for name in names if (name, count) in self.rates}
        return max(medians, key=lambda name: medians[name], default=None)


def our_kind(form: str) -> EngineKind:
    """Return our engine with weights of a form."""
    cache_bytes = MOST * (WORKLOADS[-1].prompt_length + WORKLOADS[-1].num_tokens) * CACHE_BYTES_PER_TOKEN
    settings = {"TANDEM_LANGUAGE_KV_CACHE_BYTES": str(cache_bytes)}
    return EngineKind(name=form, module="tandem_engine", weights="" if form == FULL else form, settings=settings)


def start(kinds: Sequence[EngineKind], folder: Path, stack: ExitStack, measured: Measured) -> list[EngineProcess]:
    """Start engines, one after the other.

    A peer that fails is left out.
    """
    engines = []
    for kind in kinds:
        engine = kind.start(folder.absolute())
        stack.callback(engine.close)
        try:
            engine.wait()
            measure(engine, Workload("warm-up", 8, 128, 4), 0)
        except EngineFailed as error:
            if kind.is_ours:
                raise
            measured.states[kind.name] = f"failed: {error}"
        else:
            measured.states[kind.name] = engine.version
            engines.append(engine)
    return engines


def run(engines: Sequence[EngineProcess], workloads: Sequence[Workload], rounds: int, measured: Measured) -> None:
    """Measure all engines in turn."""
    with Progress(console=Console(stderr=True)) as progress:
        for number in progress.track(range(rounds), description="decoding"):
            measured.loads.append(os.getloadavg()[0])
            measured.bandwidths.append(read_bandwidth(repetitions=3))
            for workload in workloads:
                for engine in engines[:: -1 if number % 2 else 1]:
                    rate = measure(engine, workload, number + 1).decode_rate
                    assert rate is not None
                    measured.rates.setdefault((engine.name, workload.num_prompts), []).append(rate)


def step_bytes(folder: Path, form: str) -> float:
    """Return the bytes that a step of one sequence reads."""
    source = ModelStore(folder / "tandem").folder(TAG if form == FULL else low_bit_tag(form))
    language = read_verified_config(source, read_manifest(source)).language
    alone = WORKLOADS[0]
    return weight_bytes_per_step(language) + CACHE_BYTES_PER_TOKEN * (alone.prompt_length + alone.num_tokens / 2)


def fill(report: Report, measured: Measured, bytes_of: dict[str, float]) -> None:
    """Add all figures.

    Args:
        report: gets them.
        measured: all rounds.
        bytes_of: a step of one sequence, by form.
    """
    # Above the number of threads, others used the machine, and the figures say little.
    report.add("load of the machine before the last round", measured.loads[-1], "processes")
    report.add("read bandwidth", statistics.median(measured.bandwidths) / 1e9, "GB/s")
    for (name, count), rates in measured.rates.items():
        report.add(f"{name}, {count} at once", statistics.median(rates), "tokens/s")
    for name, num_bytes in bytes_of.items():
        share = median_ratio([rate * num_bytes for rate in measured.rates[name, 1]], measured.bandwidths)
        report.add(f"{name}: bytes of a step", num_bytes / 1e9, "GB")
        figure, aim = f"{name}, 1 at once: share of the read bandwidth", f"at least {100 * BANDWIDTH_AIM:g}"
        report.add(figure, 100 * share, "%", aim=aim, met=share >= BANDWIDTH_AIM)
    for count in dict.fromkeys(count for _, count in measured.rates):
        for name in bytes_of:
            has_aim = count == MOST and name not in (FULL, BYTES)
            _add_ratio(report, measured, (name, FULL, count), SPEEDUP_AIM if has_aim else None)
        for name, (peers, with_aim) in PEERS.items():
            if (best := measured.best(peers, count)) is not None:
                _add_ratio(report, measured, (name, best, count), 1.0 if count in with_aim else None)
    report.details = {
        "engines": measured.states,
        "rates": {f"{name}, {count} at once": rates for (name, count), rates in measured.rates.items()},
        "read_bandwidth": measured.bandwidths,
        "loads": measured.loads,
    }


def _add_ratio(report: Report, measured: Measured, key: tuple[str, str, int], aim: float | None) -> None:
    """Compare two decoders."""
    name, other, count = key
    if name == other:
        return
    ratio = median_ratio(measured.rates[name, count], measured.rates[other, count])
    text, met = ("", None) if aim is None else (f"at least {aim:g}", ratio >= aim)
    report.add(f"{name} / {other}, {count} at once", ratio, "x", aim=text, met=met)


def plot(axes: Axes, measured: Measured) -> None:
    """Plot tokens/s over the number of sequences."""
    for name in dict.fromkeys(name for name, _ in measured.rates):
        points = {count: statistics.median(rates) for (each, count), rates in measured.rates.items() if each == name}
        axes.plot(list(points), list(points.values()), "o-" if name in (FULL, *LOW_BIT_FORMS) else "o--", label=name)
    axes.set(xlabel="sequences at once, 128 tokens in and 64 out", ylabel="tokens/s", xscale="log", yscale="log")
    axes.legend()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure decoding with 8 and 4 bits a weight.",
        arguments,
        checkpoints={
            "type": Path,
            "default": Path(".tandem/decode"),
            "help": "folder for the models, up to 8 GB (default: .tandem/decode)",
        },
        rounds={"type": int, "default": 5, "help": "rounds, at least 1 (default: 5)"},
    )
    forms = [BYTES, NIBBLES] if options.quick else list(LOW_BIT_FORMS)
    peers = [] if options.quick else [kind for kind in LOW_BIT_PEERS if kind.installed]
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    make_low_bit_checkpoints(options.checkpoints, forms, with_peers=bool(peers))
    measured = Measured()
    with ExitStack() as stack:
        kinds = [*map(our_kind, [FULL, *forms]), *peers]
        engines = start(kinds, options.checkpoints, stack, measured)
        run(engines, WORKLOADS[:2] if options.quick else WORKLOADS, 1 if options.quick else options.rounds, measured)
    title = f"Decoding with 8 and 4 bits a weight: Qwen3 0.6B's shape, two threads: {processor_name()}"
    report = Report(f"low_bit_speed-{processor_slug()}", title)
    fill(report, measured, {form: step_bytes(options.checkpoints, form) for form in (FULL, *forms)})
    report.publish(partial(plot, measured=measured), options.json)


if __name__ == "__main__":
    main()
