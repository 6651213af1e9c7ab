"""Compare the demo model's two variants through the whole stack.

The resampler turns an image into 32 visual tokens. The direct variant gives all 196 patches to the decoder. Both have
the same decoder, a stack of their own, and one core per stage. Their rounds are interleaved.

Rates depend on what else the machine does. The CPU time of each service depends on it less.

By default the weights are random. They cost as much as trained ones, and accuracy is left out. With `--releases` two
trained releases are measured, which also answer the questions of `demo.evaluate`.
"""

import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.processes import cpu_s
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from benchmarks.tools.traffic import LoadGenerator, Sample, printable_only
from checkpoint.config import read_config
from checkpoint.initial import create_checkpoint
from checkpoint.presets import RESAMPLER_PRESETS
from demo.evaluate import Score, evaluate, make_cases, score, to_png
from demo.scenes import VALIDATION_SEEDS
from language_service.engine.kv_cache import bytes_per_block
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig

PRESETS = {"resampler": "demo", "direct": "demo-direct"}  # variant -> preset
ANSWER_TOKENS = 16
USERS = 4
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size of the measurement."""

    rounds: int = 21
    num_requests: int = 32  # of each closed loop
    num_alone: int = 6  # requests without others
    num_questions: int = 1000  # about accuracy, 0 for random weights

    def images(self, number: int) -> list[bytes]:
        """Draw the images of one round, used in no other."""
        size = self.num_requests + self.num_alone
        return [to_png(seed) for seed in VALIDATION_SEEDS[number * size : (number + 1) * size]]


@dataclass(slots=True)
class Measured:
    """Measurements of one variant, one entry per round."""

    new_per_s: list[float] = field(default_factory=list)  # requests/s, each about a new image
    known_per_s: list[float] = field(default_factory=list)  # requests/s, each about an image asked about before
    vision_cpu_ms: list[float] = field(default_factory=list)  # CPU time per new image
    language_cpu_ms: list[float] = field(default_factory=list)  # CPU time per request about a new image
    alone: list[list[Sample]] = field(default_factory=list)  # requests about new images, one after the other
    accuracy: Score | None = None

    def tokens_per_s(self, rates: Sequence[float]) -> float:
        """Return the median rate of generated tokens, from requests/s."""
        return ANSWER_TOKENS * statistics.median(rates)

    def first_ms(self) -> list[float]:
        """Return each round's median time to first token, milliseconds."""
        return [1000 * statistics.median(sample.first_s for sample in each) for each in self.alone]

    def gap_ms(self) -> list[float]:
        """Return each round's mean time between tokens, milliseconds.

        The median would be too low, because a message may bring several tokens.
        """
        return [1000 * statistics.fmean(gap for sample in each for gap in sample.gaps_s) for each in self.alone]

    def rounds(self) -> dict[str, list[float]]:
        """Return the figures of every round by name."""
        return {
            "new_per_s": self.new_per_s,
            "known_per_s": self.known_per_s,
            "vision_cpu_ms": self.vision_cpu_ms,
            "language_cpu_ms": self.language_cpu_ms,
            "first_ms": self.first_ms(),
            "gap_ms": self.gap_ms(),
        }


@contextlib.contextmanager
def stacks(models: Path, tags: dict[str, str]) -> Iterator[dict[str, Stack]]:
    """Run one stack per variant, at the same time."""
    with contextlib.ExitStack() as running:
        yield {
            variant: running.enter_context(
                Stack(StackConfig(models=models, release=tag, precision="bfloat16", threads=1))
            )
            for variant, tag in tags.items()
        }


async def measure(running: dict[str, Stack], models: Path, plan: Plan) -> dict[str, Measured]:
    """Measure both variants in turn."""
    measured = {variant: Measured() for variant in running}
    async with contextlib.AsyncExitStack() as clients:
        loads = {}
        for variant, stack in running.items():
            client = await clients.enter_async_context(AsyncClient(stack.address))
            bias = printable_only(models / stack.config.release)
            loads[variant] = LoadGenerator(client, answer_tokens=ANSWER_TOKENS, bias=bias)
        with Progress() as progress:
            task = progress.add_task("measuring", total=(plan.rounds + 1) * len(loads))
            for number in range(plan.rounds + 1):
                images = plan.images(number)
                for variant, load in loads.items():
                    # The first round warms up.
                    one = Measured() if number == 0 else measured[variant]
                    await measure_round(load, running[variant].pids, one, images, plan)
                    progress.advance(task)
            if plan.num_questions:
                cases = make_cases(plan.num_questions, seed=0)
                for variant, stack in running.items():
                    outcomes = await evaluate(stack.address, stack.config.release, cases, progress)
                    measured[variant].accuracy = score(outcomes)
    return measured


async def measure_round(
    load: LoadGenerator, pids: dict[str, int], measured: Measured, images: Sequence[bytes], plan: Plan
) -> None:
    """Ask about new images, the same again, and alone."""
    many, few = images[: plan.num_requests], images[plan.num_requests :]
    before = {service: cpu_s(pids[service]) for service in ("vision", "language")}
    measured.new_per_s.append(await load.closed_loop(many, USERS))
    used_ms = {service: 1000 * (cpu_s(pids[service]) - start_s) / len(many) for service, start_s in before.items()}
    measured.vision_cpu_ms.append(used_ms["vision"])
    measured.language_cpu_ms.append(used_ms["language"])
    measured.known_per_s.append(await load.closed_loop(many, USERS))
    measured.alone.append([await load.ask(image) for image in few])


def fill(report: Report, measured: dict[str, Measured], models: Path, tags: dict[str, str]) -> None:
    """Add the figures to the report."""
    for variant, one in measured.items():
        config = read_config(models / tags[variant])
        num_tokens = config.num_visual_tokens or 0
        position_bytes = bytes_per_block(config.language, BLOCK_SIZE, torch.bfloat16) / BLOCK_SIZE
        if one.accuracy:
            report.add(f"{variant}: right answers", 100 * one.accuracy.right, "%")
            report.add(f"{variant}: right with a swapped image", 100 * one.accuracy.right_when_swapped, "%")
        report.add(f"{variant}: visual tokens per image", num_tokens, "tokens")
        report.add(f"{variant}: KV cache per image", num_tokens * position_bytes / 1024, "KiB")
        report.add(f"{variant}: visual cache per image", num_tokens * config.token_width * 2 / 1024, "KiB")
        report.add(f"{variant}: new images, {USERS} users", one.tokens_per_s(one.new_per_s), "tokens/s")
        report.add(f"{variant}: known images, {USERS} users", one.tokens_per_s(one.known_per_s), "tokens/s")
        report.add(f"{variant}: time to first token, new image", statistics.median(one.first_ms()), "ms")
        report.add(f"{variant}: time between tokens", statistics.median(one.gap_ms()), "ms")
        report.add(f"{variant}: vision service, CPU time per image", statistics.median(one.vision_cpu_ms), "ms")
        report.add(f"{variant}: language service, CPU time per request", statistics.median(one.language_cpu_ms), "ms")
    few, many = (measured[variant] for variant in PRESETS)
    for name, ratio in (
        ("tokens/s, new images", median_ratio(many.new_per_s, few.new_per_s)),
        ("tokens/s, known images", median_ratio(many.known_per_s, few.known_per_s)),
        ("time to first token", median_ratio(many.first_ms(), few.first_ms())),
        ("vision service, CPU time", median_ratio(many.vision_cpu_ms, few.vision_cpu_ms)),
        ("language service, CPU time", median_ratio(many.language_cpu_ms, few.language_cpu_ms)),
    ):
        report.add(f"direct / resampler: {name}", ratio, "x")


def make_random_models(folder: Path) -> dict[str, str]:
    """Make a checkpoint of each variant with random weights.

    Returns the tag of each variant.
    """
    tags = {variant: f"{preset}-v0.0.0" for variant, preset in PRESETS.items()}
    for variant, tag in tags.items():
        create_checkpoint(folder, tag, RESAMPLER_PRESETS[PRESETS[variant]], dtype=torch.bfloat16)
    return tags


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Compare the demo model with and without its resampler.",
        arguments,
        releases={
            "nargs": 2,
            "metavar": ("RESAMPLER", "DIRECT"),
            "help": "tags of trained releases (default: random weights, accuracy is left out)",
        },
        models={"type": Path, "default": Path("models"), "help": "folder of the model store (default: models)"},
        questions={"type": int, "default": 1000, "help": "questions about accuracy (default: %(default)s)"},
    )
    num_questions = options.questions if options.releases else 0
    plan = (
        Plan(rounds=2, num_requests=12, num_alone=3, num_questions=min(num_questions, 32))
        if options.quick
        else Plan(num_questions=num_questions)
    )
    with tempfile.TemporaryDirectory() as scratch:
        if options.releases:
            models, tags = options.models, dict(zip(PRESETS, options.releases, strict=True))
        else:
            models, tags = Path(scratch), make_random_models(Path(scratch))
        with stacks(models, tags) as running:
            measured = asyncio.run(measure(running, models, plan))
        report = Report("direct_variant", "The demo model with and without a resampler, through the stack")
        fill(report, measured, models, tags)
    report.details["plan"] = asdict(plan) | {"users": USERS, "answer_tokens": ANSWER_TOKENS, "tags": tags}
    report.details["measurements"] = {variant: one.rounds() for variant, one in measured.items()}

    def plot(axes: Axes) -> None:
        for offset, (variant, one) in enumerate(measured.items()):
            rates = [one.tokens_per_s(one.new_per_s), one.tokens_per_s(one.known_per_s)]
            axes.bar([place + 0.4 * offset for place in range(len(rates))], rates, width=0.38, label=variant)
        axes.set(ylabel=f"tokens/s, {USERS} users", xticks=(0.2, 1.2), xticklabels=("new images", "known images"))
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
