"""Decoding speed compared with other engines on the same machine.

    make peers                                                  # once: installs each peer under .peers/
    python -m benchmarks.decode                                 # all installed peers, five rounds
    python -m benchmarks.decode --peers vllm --rounds 3         # one peer, three rounds
    python -m benchmarks.decode --kernels avx2                  # our engine with the kernels of an instruction set
    python -m benchmarks.decode --quick                         # small batches, one round

All engines decode the same weights: Qwen3 0.6B's shape, random, in bfloat16. They use two threads, decode greedily and
ignore the end of sequence. Each engine runs in a process of its own (`benchmarks/peers/protocol.py`). In every round
the engines take turns on each workload, so a change of the machine's speed affects all of them.

Steps of our engine are compared with their limits: reading, and arithmetic, whichever takes longer on this machine
(`benchmarks/peers/limits.py`).

A slow peer cannot be the best and would take most of the time. So a peer that is far slower than another in the first
round of a workload skips the other rounds, and a very slow one also skips larger batches. The script measures the read
bandwidth before every round.

Each processor and instruction set has its own results: `results/decode-PROCESSOR-KERNELS.json`.
"""

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.peers.checkpoints import SHAPE, make_checkpoints
from benchmarks.peers.comparison import STEPS, Comparison, Results
from benchmarks.peers.engines import ENGINES, THREADS, EngineKind
from benchmarks.peers.figures import fill, plot
from benchmarks.peers.workloads import BATCHES, PREFILL, Workload
from benchmarks.tools.machine import matmul_peak, read_bandwidth
from benchmarks.tools.processor import processor_name, processor_slug
from benchmarks.tools.report import Report, parse_arguments
from language_service.kernels import KernelName, choose_kernels

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)  # batch sizes of a step, with 128 tokens of context
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)  # context lengths of a step with one sequence
NUM_STEPS = 12


def compare(comparison: Comparison, workloads: Sequence[Workload], rounds: int, end_s: float) -> None:
    """Run all rounds of each workload.

    After `end_s` of the monotonic clock, each workload has only one round.
    """
    with Progress(console=Console(stderr=True)) as progress:
        for workload in workloads:
            for number in progress.track(range(1, rounds + 1), description=workload.name):  # round 0 was the warm-up
                bandwidth = read_bandwidth(repetitions=3)
                comparison.results.read_bandwidth.setdefault(workload.name, []).append(bandwidth)
                comparison.run(workload, number)
                if time.monotonic() > end_s:
                    break


def compare_shared_prefix(comparison: Comparison, rounds: int) -> None:
    """Measure prompts with a common prefix, new in every round."""
    with Progress(console=Console(stderr=True)) as progress:
        for number in progress.track(range(1, rounds + 1), description="shared prefix"):
            comparison.share_prefix(number)


def measure_step_times(comparison: Comparison, rounds: int) -> None:
    """Measure our engine's step time over batch size and context."""
    points = [*((count, CONTEXTS[0]) for count in SEQUENCES), *((1, context) for context in CONTEXTS[1:])]
    with Progress(console=Console(stderr=True)) as progress:
        for _ in progress.track(range(rounds + 1), description=STEPS):
            comparison.results.read_bandwidth.setdefault(STEPS, []).append(read_bandwidth(repetitions=3))
            comparison.results.matmul_peaks.append(matmul_peak())
            for num_sequences, context in points:
                comparison.step(num_sequences, context, NUM_STEPS)
    for samples in comparison.results.step_s.values():
        del samples[0]  # includes the prefill, which is cached in later rounds


def choose(names: str) -> list[EngineKind]:
    """Return our engines and the named peers.

    `names` are separated by commas. An empty text means all peers.

    Raises:
        SystemExit: a name is unknown.
    """
    peers = [kind.name for kind in ENGINES if not kind.is_ours]
    wanted = names.split(",") if names else peers
    if unknown := set(wanted) - set(peers):
        raise SystemExit(f"there is no peer {', '.join(sorted(unknown))}; choose among {', '.join(peers)}")
    return [kind for kind in ENGINES if kind.is_ours or kind.name in wanted]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Compare the speed of our decoder with other engines.",
        arguments,
        peers={"default": "", "help": "names of peers, separated by commas (default: all that are installed)"},
        kernels={"choices": get_args(KernelName), "default": "auto", "help": "kernels of our engine (default: auto)"},
        rounds={"type": int, "default": 0, "help": "rounds per workload (default: 5, or 1 with --quick)"},
        minutes={"type": float, "default": 60, "help": "after this time, run one round per workload (default: 60)"},
        checkpoints={
            "type": Path,
            "default": Path(".tandem/decode"),
            "help": "folder for the model, 3.6 GB (default: .tandem/decode)",
        },
    )
    end_s = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(THREADS)
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    os.environ["TANDEM_LANGUAGE_KERNELS"] = options.kernels  # the setting `--kernels` of both of our engines
    kernels = choose_kernels(SHAPE, torch.bfloat16, torch.device("cpu"), options.kernels).name
    kinds = choose(options.peers)
    make_checkpoints(options.checkpoints, with_peers=any(kind.installed and not kind.is_ours for kind in kinds))
    rounds = options.rounds or (1 if options.quick else 5)
    with ExitStack() as stack:
        comparison = Comparison(kinds, options.checkpoints.absolute(), stack)
        comparison.results.matmul_peaks.append(matmul_peak())
        compare(comparison, [*BATCHES[:2], PREFILL], rounds, end_s)
        compare_shared_prefix(comparison, rounds)
        if not options.quick:
            measure_step_times(comparison, rounds)
            compare(comparison, BATCHES[2:], rounds, end_s)
    publish(comparison.results, kernels, options.json)


def publish(results: Results, kernels: str, json_path: Path | None) -> None:
    """Print the figures and write the files."""
    name, machine = f"decode-{processor_slug(kernels)}", f"{processor_name()}, {kernels}"
    report = Report(name, f"Decoding Qwen3 0.6B's shape, bfloat16, two threads: {machine}")
    fill(report, results)
    report.publish(lambda axes: plot(axes, results), json_path)


if __name__ == "__main__":
    main()
