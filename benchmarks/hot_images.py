"""Effect of the caches on questions about popular images.

Requests choose their images from a Zipf distribution and go through the whole stack. Two stacks differ only in their
caches, the visual cache and the prefix cache: both off, or on as by default. The caches have room for half of the
images, since a real shop's images do not all fit.

Rounds are interleaved and have two parts. The throughput part is a closed loop with a fixed number of users. The
latency part sends requests at the same random times to both stacks, since latencies are comparable only at equal load.
Its rate is one that the slower stack can sustain. The weights are random, at the same cost as trained ones. A run takes
about ten minutes on two idle cores. `--models` and `--release` measure another model.
"""

import asyncio
import contextlib
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.images import photograph
from benchmarks.tools.models import chosen_release, full_size_encoder
from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.traffic import ZIPF, LoadGenerator, Measurements, poisson_arrivals, printable_only, zipf
from checkpoint.config import read_config
from checkpoint.initial import create_checkpoint
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig

OFF, ON = "caches off", "caches on"
ANSWER_TOKENS = 16
USERS = 8
LOAD = 0.6  # share of the throughput without caches


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size of the measurement."""

    num_images: int = 60
    num_cached: int = 30  # images that fit in the caches
    rounds: int = 5
    num_requests: int = 12  # in each part of a round

    def draw(self, seed: int) -> list[bytes]:
        """Return random images for one part of a round."""
        return [photograph(rank) for rank in zipf(range(self.num_images), self.num_requests, seed)]


@contextlib.contextmanager
def stacks(models: Path, release: str, cache_bytes: int) -> Iterator[dict[str, Stack]]:
    """Run one stack per setting, at the same time."""
    flags = {OFF: (["--no-visual-cache"], ["--no-prefix-cache"]), ON: ([], [])}  # for gateway and language service
    with contextlib.ExitStack() as running:
        yield {
            setting: running.enter_context(
                Stack(
                    StackConfig(
                        models=models,
                        release=release,
                        precision="bfloat16",
                        threads=1,  # one core per stage
                        gateway_flags=("--visual-cache-bytes", str(cache_bytes), *gateway_flags),
                        vision_flags=("--cache-bytes", str(cache_bytes)),
                        language_flags=language_flags,
                    )
                )
            )
            for setting, (gateway_flags, language_flags) in flags.items()
        }


async def measure(
    running: dict[str, Stack], bias: dict[int, float], plan: Plan
) -> tuple[dict[str, Measurements], float]:
    """Measure all settings in turn.

    Returns the measurements by setting, and the request rate of the latency part, requests/s.
    """
    measured = {setting: Measurements() for setting in running}
    async with contextlib.AsyncExitStack() as clients:
        loads = {}
        for setting, stack in running.items():
            client = await clients.enter_async_context(AsyncClient(stack.address))
            loads[setting] = LoadGenerator(client, answer_tokens=ANSWER_TOKENS, bias=bias)
        with Progress() as progress:
            task = progress.add_task("warm-up", total=len(loads) * (1 + 2 * plan.rounds))
            rates = {}
            for setting, load in loads.items():
                # The most popular images come last, so the cache is as after a long run.
                ranks = range(USERS if setting == OFF else plan.num_cached)
                rates[setting] = await load.closed_loop([photograph(rank) for rank in reversed(ranks)], USERS)
                progress.advance(task)
            for index in range(plan.rounds):
                progress.update(task, description=f"round {index + 1}, throughput")
                for setting, load in loads.items():
                    await measure_throughput(load, measured[setting], plan.draw(2 * index), is_cached=setting != OFF)
                    progress.advance(task)
                progress.update(task, description=f"round {index + 1}, latency")
                times_s = poisson_arrivals(LOAD * rates[OFF], plan.num_requests, seed=index)
                for setting, load in loads.items():
                    measured[setting].samples.append(await load.open_loop(times_s, plan.draw(2 * index + 1)))
                    progress.advance(task)
    return measured, LOAD * rates[OFF]


async def measure_throughput(
    load: LoadGenerator, measured: Measurements, images: Sequence[bytes], *, is_cached: bool
) -> None:
    """Measure one round of throughput, and its limit with caches.

    The upper limit is the throughput of questions about one cached image.
    """
    measured.requests_per_s.append(await load.closed_loop(images, USERS))
    if is_cached:
        measured.one_image_per_s.append(await load.closed_loop([photograph(0)] * len(images), USERS))


def fill(report: Report, measured: dict[str, Measurements], rate: float) -> None:
    """Add the figures to the report."""
    off = measured[OFF]
    rates = {setting: statistics.median(one.requests_per_s) for setting, one in measured.items()}
    for setting, one in measured.items():
        report.add(f"{setting}: {USERS} users in a closed loop", rates[setting], "requests/s")
        if one.one_image_per_s:
            report.add(f"{setting}: the same, one image", statistics.median(one.one_image_per_s), "requests/s")
    ratio = rates[ON] / rates[OFF]
    report.add(f"requests/s, {ON} / {OFF}", ratio, "x", aim="at least 3", met=ratio >= 3)
    report.add("rate of the latency measurements", rate, "requests/s")
    for setting, one in measured.items():
        report.add(f"{setting}: cache hits", one.share_of_hits(), "%")
        for name, percentile, percents in (
            ("time to first token", Measurements.first_ms, (50, 90, 99)),
            ("time between tokens", Measurements.gap_ms, (50, 99)),
        ):
            for percent in percents:
                value = percentile(one, percent)
                has_aim = setting == ON and (percentile is Measurements.gap_ms or percent == 90)
                met = value <= percentile(off, percent) if has_aim else None
                report.add(f"{setting}: {name} p{percent}", value, "ms", aim="no worse" * has_aim, met=met)
        if setting != OFF:
            saved = 100 * (1 - one.first_ms(50, hits_only=True) / off.first_ms(50))
            name = f"{setting}: time to first token p50 saved by a hit"
            report.add(name, saved, "%", aim="at least 87", met=saved >= 87)


def run(models: Path, release: str, plan: Plan) -> tuple[dict[str, Measurements], float]:
    """Run the stacks on a release and measure them."""
    config = read_config(models / release)
    if config.num_visual_tokens is None:
        raise SystemExit(f"{release} has no fixed number of visual tokens per image; choose another release")
    # In addition to the embeddings, an entry needs up to 1 KiB: key, digest, shape, tables.
    cache_bytes = plan.num_cached * (config.num_visual_tokens * config.language.width * 2 + 1024)
    with stacks(models, release, cache_bytes) as running:
        return asyncio.run(measure(running, printable_only(models / release), plan))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure the effect of the caches on questions about popular images.",
        arguments,
        models={"type": Path, "help": "folder of a model store (default: a new model with a full-size encoder)"},
        release={"help": "tag of the release (default: the newest in --models)"},
    )
    plan = Plan(num_images=12, num_cached=6, rounds=1, num_requests=8) if options.quick else Plan()
    with tempfile.TemporaryDirectory() as folder:
        if options.models is None:
            models, release = Path(folder), "full-size-encoder-v1.0.0"
            create_checkpoint(models, release, full_size_encoder(), dtype=torch.bfloat16)
        else:
            models, release = options.models, chosen_release(options)
        measured, rate = run(models, release, plan)
    name = "hot_images" if options.models is None else f"hot_images_{release}"
    report = Report(name, f"Questions about popular images: {release}")
    fill(report, measured, rate)
    report.details["plan"] = asdict(plan) | {"zipf": ZIPF, "users": USERS, "answer_tokens": ANSWER_TOKENS}
    report.details["measurements"] = {setting: asdict(one) for setting, one in measured.items()}

    def plot(axes: Axes) -> None:
        for setting, one in measured.items():
            times = sorted(1000 * sample.first_s for each in one.samples for sample in each)
            axes.plot(times, np.linspace(0, 100, len(times)), label=setting)
        axes.set(xlabel=f"time to first token at {rate:.2g} requests/s, ms", ylabel="requests, %", xscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
