"""How fast the decoder is beside what a user would pick instead: same weights, same machine, same run.

    make peers                                                  # once: an environment for each peer, under .peers/
    python -m benchmarks.decode                                 # everything installed, five rounds
    python -m benchmarks.decode --peers vllm --rounds 3         # less of it
    python -m benchmarks.decode --quick                         # small batches, one round

Qwen3 0.6B's shape with random bfloat16 weights, two threads, greedy, the end of sequence ignored. Each engine is a
process of its own that loads once and then answers in turn (`benchmarks/peers/protocol.py`); in every round each
workload goes to one engine after the other, so that a machine that drifts is fair to all. A peer that is far behind
another in a workload's first round is not asked again, and one hopelessly behind at a smaller batch not about a larger
one: it cannot be the best, and would take most of the time. Read bandwidth is measured before every round.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.peers.checkpoints import make_checkpoints
from benchmarks.peers.comparison import Contest, Results
from benchmarks.peers.engines import ENGINES, THREADS, EngineKind
from benchmarks.peers.figures import fill, plot
from benchmarks.peers.workloads import BATCHES, PREFILL, Workload
from benchmarks.tools.machine import matmul_peak, read_bandwidth
from benchmarks.tools.report import Report, parse_arguments

SEQUENCES = (1, 2, 4, 8, 16, 32, 64)  # of a step, at a context of 128
CONTEXTS = (128, 256, 512, 1024, 2048, 4096)  # of a step of one sequence
STEPS = 12


def compare(contest: Contest, workloads: Sequence[Workload], rounds: int, end_s: float) -> None:
    """Run workloads, one after the other, each round by round; after `end_s` of the clock but one round of each."""
    with Progress(console=Console(stderr=True)) as progress:
        for workload in workloads:
            for number in progress.track(range(1, rounds + 1), description=workload.name):  # round 0 warmed
                bandwidth = read_bandwidth(repetitions=3)
                contest.results.read_bandwidth.setdefault(workload.name, []).append(bandwidth)
                contest.run(workload, number)
                if time.monotonic() > end_s:
                    break


def compare_shared_prefix(contest: Contest, rounds: int) -> None:
    """Let engines meet a prefix and then meet it again and again."""
    with Progress(console=Console(stderr=True)) as progress:
        for number in progress.track(range(1, rounds + 1), description="shared prefix"):
            contest.share_prefix(number)


def look_at_steps(contest: Contest, rounds: int) -> None:
    """Measure what a step of ours takes as sequences and context grow."""
    points = [*((count, CONTEXTS[0]) for count in SEQUENCES), *((1, context) for context in CONTEXTS[1:])]
    with Progress(console=Console(stderr=True)) as progress:
        for _ in progress.track(range(rounds + 1), description="steps"):
            for num_sequences, context in points:
                contest.step(num_sequences, context, STEPS)
    for taken in contest.results.step_s.values():
        del taken[0]  # it computed the prompt, which later ones found cached


def choose(names: str) -> list[EngineKind]:
    """Return our engines and the peers named, separated by commas; all peers for an empty text.

    Raises:
        SystemExit: there is no such peer.
    """
    peers = [kind.name for kind in ENGINES if not kind.is_ours]
    wanted = names.split(",") if names else peers
    if unknown := set(wanted) - set(peers):
        raise SystemExit(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(peers)}")
    return [kind for kind in ENGINES if kind.is_ours or kind.name in wanted]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Our decoder beside what a user would pick instead.",
        arguments,
        peers={"default": "", "help": "peers by name, separated by commas; all that are installed where left out"},
        rounds={"type": int, "default": 0, "help": "how often each workload is run; 5, or 1 with --quick"},
        minutes={"type": float, "default": 60, "help": "after which a workload gets no second round"},
        checkpoints={"type": Path, "default": Path(".tandem/decode"), "help": "where the model is kept (3.6 GB)"},
    )
    end_s = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(THREADS)
    options.checkpoints.mkdir(parents=True, exist_ok=True)
    kinds = choose(options.peers)
    make_checkpoints(options.checkpoints, with_peers=any(kind.installed and not kind.is_ours for kind in kinds))
    rounds = options.rounds or (1 if options.quick else 5)
    with ExitStack() as stack:
        contest = Contest(kinds, options.checkpoints.absolute(), stack)
        contest.results.matmul_peak = matmul_peak(torch.bfloat16)
        compare(contest, [*BATCHES[:2], PREFILL], rounds, end_s)
        compare_shared_prefix(contest, rounds)
        if not options.quick:
            look_at_steps(contest, rounds)
            compare(contest, BATCHES[2:], rounds, end_s)
    publish(contest.results, options.json)


def publish(results: Results, json_path: Path | None) -> None:
    """Print the figures and write them down."""
    report = Report("decode", "Decoding beside other engines: Qwen3 0.6B's shape, bfloat16, two threads")
    fill(report, results)
    report.publish(lambda axes: plot(axes, results), json_path)


if __name__ == "__main__":
    main()
