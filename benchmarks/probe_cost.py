"""Time between a user's tokens while two releases answer 500 probes.

Users ask about images all the time. In one window of each pair a rollout prepares, and both releases answer 50 new
probes. The other window is as long, without a rollout. The windows take turns, so that a change of the machine's speed
affects both. Loading the canary counts in neither window, as a rollout without probes loads it too.

The releases are the demo's. Each answer to a probe counts as right, so that all probes are asked.
"""

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.report import Report, median_ratio, parse_arguments
from benchmarks.tools.traffic import printable_only
from chassis.atomic_file import write_atomically
from demo.evaluate import make_cases
from demo.probes import probe_lines
from tandem.client import AsyncClient, Rollouts
from tandem.stack import Stack, StackConfig
from tandem.v1 import rollout_pb2

STABLE, CANARY = "tandem-demo-v1.1.0", "tandem-demo-v1.0.0"
PAIRS, PROBES_PER_PAIR = 10, 50
AIM_RATIO = 1.05
USERS = 16
ANSWER_TOKENS = 48
PAUSE_S = 1.0  # mean time between an answer and the user's next question
SETTLE_S = 2.0  # after a canary is unloaded
PLAIN_S = 30.0  # of the first window without probes. Later ones are as long as the probes before them
_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class Gap:
    """The time between two tokens of one answer."""

    at_s: float  # time.perf_counter, of the second token
    seconds: float


@dataclass(frozen=True, slots=True)
class Window:
    """A time in which both releases answer probes, or neither."""

    from_s: float
    to_s: float

    def gaps_ms(self, gaps: Sequence[Gap]) -> list[float]:
        """Return the gaps inside, milliseconds."""
        return [1000 * gap.seconds for gap in gaps if self.from_s <= gap.at_s - gap.seconds and gap.at_s <= self.to_s]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and publish the results."""
    options = parse_arguments(
        "Measure the cost of 500 probes for users.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "folder of the model store (default: models)"},
        pairs={"type": int, "default": PAIRS, "help": f"pairs of windows (default: {PAIRS})"},
        users={"type": int, "default": USERS, "help": f"users who ask all the time (default: {USERS})"},
    )
    pairs, num_probes = (1, 20) if options.quick else (options.pairs, PROBES_PER_PAIR)
    with tempfile.TemporaryDirectory() as folder:
        store, file = Path(folder) / "models", Path(folder) / "probes.jsonl"
        for tag in (STABLE, CANARY):
            copy_without_probes(options.models / tag, store / tag)
        parts = lenient_probes(pairs, num_probes)
        file.write_text(parts[0], encoding="utf-8")
        config = StackConfig(models=store, release=STABLE, gateway_flags=["--rollout-probes", str(file)])
        with Stack(config) as stack:
            plain, probed, seconds = asyncio.run(measure(stack.address, store / STABLE, options.users, file, parts))

    title = f"{pairs * num_probes} probes beside {options.users} users, {pairs} pairs of windows"
    report = Report("probe_cost", title)
    p99 = {name: [float(np.percentile(gaps, 99)) for gaps in of] for name, of in (("without", plain), ("with", probed))}
    ratio = median_ratio(p99["with"], p99["without"])
    for name, of in (("without", plain), ("with", probed)):
        report.add(f"between tokens, p50, {name} probes", float(np.median([np.median(one) for one in of])), "ms")
        report.add(f"between tokens, p99, {name} probes", float(np.median(p99[name])), "ms")
    aim = f"at most {AIM_RATIO}"
    report.add("p99 with probes to without, median of pairs", ratio, "", aim=aim, met=ratio <= AIM_RATIO)
    report.add("time of a probe, median", float(np.median(seconds)) / num_probes, "s")
    report.details = {
        "p99_ms": p99,
        "seconds": seconds,
        "tokens": {"without": sum(map(len, plain)), "with": sum(map(len, probed))},
    }
    report.publish(lambda axes: plot(axes, p99), options.json)


def copy_without_probes(folder: Path, copy: Path) -> None:
    """Copy a release, but not its probes."""
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("probes.jsonl"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"].pop("probes.jsonl", None)
    (copy / "manifest.json").write_text(json.dumps(manifest))


def lenient_probes(pairs: int, num_probes: int) -> list[str]:
    """Return a file of other probes for each pair.

    No answer is wrong. Otherwise the worse canary would leave after some of them.
    """
    lines = [json.loads(line) for line in probe_lines(pairs * num_probes)]
    images = [line for line in lines if "image" in line]
    probes = [line | {"judge": {"regex": ".?"}} for line in lines if "id" in line]
    parts = (probes[start : start + num_probes] for start in range(0, len(probes), num_probes))
    return ["".join(f"{json.dumps(line)}\n" for line in (*images, *part)) for part in parts]


async def measure(
    address: str, release: Path, users: int, file: Path, parts: Sequence[str]
) -> tuple[list[list[float]], list[list[float]], list[float]]:
    """Return the gaps of each pair, and the probes' seconds.

    First those without probes, then those with them.
    """
    plain, probed, seconds = [], [], [PLAIN_S]
    async with asking(address, release, users) as gaps:
        with Progress() as progress, Rollouts(address, timeout_s=60) as rollouts:
            task = progress.add_task("asking", total=2 * len(parts))
            await asyncio.sleep(SETTLE_S)
            for pair, part in enumerate(parts):
                write_atomically(file, part.encode())
                for with_probes in (False, True) if pair % 2 == 0 else (True, False):
                    if with_probes:
                        window = await asyncio.to_thread(run_probes, rollouts)
                        seconds.append(window.to_s - window.from_s)
                        probed.append(window.gaps_ms(gaps))
                        await asyncio.sleep(SETTLE_S)
                    else:
                        from_s = time.perf_counter()
                        await asyncio.sleep(seconds[-1])
                        plain.append(Window(from_s, time.perf_counter()).gaps_ms(gaps))
                    gaps.clear()
                    progress.advance(task)
    return plain, probed, seconds[1:]


def run_probes(rollouts: Rollouts) -> Window:
    """Prepare a rollout, and roll it back after the probes.

    Returns the time from the first answered probe to the last.
    """
    steps = [rollout_pb2.RolloutStep(weight_percent=weight, seconds=3600) for weight in (1, 100)]
    guard = rollout_pb2.RolloutGuard(max_error_rate_increase=0.02, max_quality_drop=0.001, probe_timeout_s=3600)
    rollouts.set(rollout_pb2.RolloutPlan(canary=CANARY, steps=steps, guard=guard))
    from_s = 0.0
    while (rollout := rollouts.get()).phase == rollout_pb2.ROLLOUT_PHASE_PREPARING:
        if not from_s and rollout.probes.judged:
            from_s = time.perf_counter()
        time.sleep(_POLL_S)
    window = Window(from_s, time.perf_counter())
    if rollout.phase != rollout_pb2.ROLLOUT_PHASE_RUNNING or rollout.probes.remaining:
        raise RuntimeError(f"the probes ended early: {rollout.changes[-1].reason}")
    rollouts.roll_back("the probes are answered")
    return window


@asynccontextmanager
async def asking(address: str, release: Path, users: int) -> AsyncIterator[list[Gap]]:
    """Ask for the block. Yields the gaps so far."""
    gaps: list[Gap] = []
    images = list({case.image for case in make_cases(64, seed=2)})
    bias = printable_only(release)
    ending = asyncio.Event()
    async with AsyncClient(address, timeout_s=60) as client, asyncio.TaskGroup() as tasks:

        async def user(number: int) -> None:
            rng = random.Random(number)
            while not ending.is_set():
                stream = client.generate(
                    "What is in the image?",
                    images=[rng.choice(images)],
                    max_tokens=ANSWER_TOKENS,
                    ignore_eos=True,
                    logit_bias=bias,
                )
                before_s = 0.0
                async for _ in stream:
                    now_s = time.perf_counter()
                    if before_s:
                        gaps.append(Gap(now_s, now_s - before_s))
                    before_s = now_s
                await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

        for number in range(users):
            tasks.create_task(user(number))
        try:
            yield gaps
        finally:
            ending.set()


def plot(axes: Axes, p99: dict[str, list[float]]) -> None:
    """Draw the percentile of each pair."""
    for name, values in p99.items():
        axes.plot(range(1, len(values) + 1), values, "o-", label=f"{name} probes")
    axes.set(xlabel="pair of windows", ylabel="p99 between tokens, ms")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
