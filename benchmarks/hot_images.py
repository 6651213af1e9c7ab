"""What keeping visual tokens saves where some images are asked about far more often than others.

Questions about images drawn from a Zipf distribution go through the whole stack, in two settings of equal stacks:
every image encoded for every request, and visual tokens and prompt prefixes kept, as the product comes. The caches
hold half of the images, as the tail of a real shop never fits. Rounds are interleaved and have two parts: a fixed
number of users who ask again at once (requests a second), and requests at the same random times for both settings, at a
rate the slower can bear (latencies at equal load: who answers more at once also decodes more at once). Random weights:
they cost the same as trained ones. Takes about ten minutes on two idle cores; --models and --release measure a model of
your own.
"""

import asyncio
import contextlib
import functools
import io
import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from PIL import Image
from rich.progress import Progress

from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.traffic import Asker, Taken, arrivals, readable_only
from checkpoint.config import LanguageConfig, ModelConfig, read_config
from checkpoint.initial import create_checkpoint
from checkpoint.presets import PRESETS
from tandem.client import AsyncClient
from tandem.stack import Stack, StackConfig

OFF, KEPT = "encoded each time", "kept"  # the settings
ANSWER_TOKENS = 16
ZIPF = 1.1
USERS = 8
LOAD = 0.6  # of what the slowest setting can answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured."""

    num_images: int = 60
    num_kept: int = 30  # images the caches have room for
    rounds: int = 5
    num_asked: int = 12  # requests of each part of a round

    def draw(self, seed: int) -> list[bytes]:
        """Return the images the requests of one part of a round ask about."""
        weights = [1 / (rank + 1) ** ZIPF for rank in range(self.num_images)]
        return [
            photograph(rank) for rank in random.Random(seed).choices(range(self.num_images), weights, k=self.num_asked)
        ]


def real_encoder() -> ModelConfig:
    """Return a full-size vision half (ViT-L/14, six-layer resampler) before a decoder that two cores can run."""
    decoder = LanguageConfig(
        width=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=2,
        head_dim=64,
        mlp_width=1536,
        vocab_size=264,
        context_length=2048,
        eos_token_ids=(2,),
    )
    return PRESETS["qwen3-vl-8b"].model_copy(update={"language": decoder})


@functools.cache
def photograph(number: int) -> bytes:
    """Return one of many different JPEG files of 640 x 480 pixels, about 90 KiB, as cameras make them."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((640, 480))
    noisy = np.asarray(coarse, np.float32) + rng.normal(0, 12, (480, 640, 1)).astype(np.float32)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


@contextlib.contextmanager
def stacks(models: Path, release: str, kept_bytes: int) -> Iterator[dict[str, Stack]]:
    """Run one stack a setting; those that are not asked only wait."""
    switches = {OFF: (["--no-visual-cache"], ["--no-prefix-cache"]), KEPT: ([], [])}  # of gateway, of language service
    with contextlib.ExitStack() as running:
        yield {
            setting: running.enter_context(
                Stack(
                    StackConfig(
                        models=models,
                        release=release,
                        precision="bfloat16",
                        threads=1,  # each stage has a core of its own, as on machines of their own
                        gateway_flags=("--visual-cache-bytes", str(kept_bytes), *gateway_switches),
                        vision_flags=("--cache-bytes", str(kept_bytes)),
                        language_flags=language_switches,
                    )
                )
            )
            for setting, (gateway_switches, language_switches) in switches.items()
        }


async def measure(running: dict[str, Stack], bias: dict[int, float], plan: Plan) -> tuple[dict[str, Taken], float]:
    """Return what was measured of each setting, and the rate of the latency part, requests a second."""
    taken = {setting: Taken() for setting in running}
    async with contextlib.AsyncExitStack() as clients:
        askers = {}
        for setting, stack in running.items():
            client = await clients.enter_async_context(AsyncClient(stack.address))
            askers[setting] = Asker(client, answer_tokens=ANSWER_TOKENS, bias=bias)
        with Progress() as progress:
            task = progress.add_task("warming", total=len(askers) * (1 + 2 * plan.rounds))
            rates = {}
            for setting, asker in askers.items():
                # The hottest come last, which leaves a cache as one that has run for long.
                ranks = range(USERS if setting == OFF else plan.num_kept)
                rates[setting] = await asker.ask_in_turn([photograph(rank) for rank in reversed(ranks)], USERS)
                progress.advance(task)
            for index in range(plan.rounds):
                progress.update(task, description=f"round {index + 1}, throughput")
                for setting, asker in askers.items():
                    await measure_throughput(asker, taken[setting], plan.draw(2 * index), is_cached=setting != OFF)
                    progress.advance(task)
                progress.update(task, description=f"round {index + 1}, latency")
                times_s = arrivals(LOAD * rates[OFF], plan.num_asked, seed=index)
                for setting, asker in askers.items():
                    taken[setting].samples.append(await asker.ask_at(times_s, plan.draw(2 * index + 1)))
                    progress.advance(task)
    return taken, LOAD * rates[OFF]


async def measure_throughput(asker: Asker, taken: Taken, images: Sequence[bytes], *, is_cached: bool) -> None:
    """Add one round of users without a pause, and one of the best that can be: all about one image."""
    taken.requests_per_s.append(await asker.ask_in_turn(images, USERS))
    if is_cached:
        taken.best_per_s.append(await asker.ask_in_turn([photograph(0)] * len(images), USERS))


def fill(report: Report, taken: dict[str, Taken], load: float) -> None:
    """Add the figures; the aims are those of the product as it comes."""
    off = taken[OFF]
    rates = {setting: statistics.median(one.requests_per_s) for setting, one in taken.items()}
    for setting, one in taken.items():
        report.add(f"{setting}: {USERS} users without a pause", rates[setting], "requests/s")
        if one.best_per_s:
            report.add(f"{setting}: the same, all about one image", statistics.median(one.best_per_s), "requests/s")
    ratio = rates[KEPT] / rates[OFF]
    report.add(f"requests a second, {KEPT} over {OFF}", ratio, "x", aim="3 or more", met=ratio >= 3)
    report.add("requests at random times, for what follows", load, "requests/s")
    for setting, one in taken.items():
        report.add(f"{setting}: images that had been encoded", one.share_of_hits(), "%")
        for name, percentile, percents in (
            ("time to first token", Taken.first_ms, (50, 90, 99)),
            ("between tokens", Taken.gap_ms, (50, 99)),
        ):
            for percent in percents:
                value = percentile(one, percent)
                has_aim = setting == KEPT and (percentile is Taken.gap_ms or percent == 90)
                met = value <= percentile(off, percent) if has_aim else None
                report.add(f"{setting}: {name} p{percent}", value, "ms", aim="no worse" * has_aim, met=met)
        if setting != OFF:
            saved = 100 * (1 - one.first_ms(50, hits_only=True) / off.first_ms(50))
            report.add(f"{setting}: first token p50 sooner on a hit", saved, "%", aim="87 or more", met=saved >= 87)


def run(models: Path, release: str, plan: Plan) -> tuple[dict[str, Taken], float]:
    """Run the stacks on a release and measure them."""
    config = read_config(models / release)
    # Beside the embeddings an entry takes up to a KiB: key, digest, shape, tables.
    kept_bytes = plan.num_kept * (config.num_visual_tokens * config.language.width * 2 + 1024)
    with stacks(models, release, kept_bytes) as running:
        return asyncio.run(measure(running, readable_only(models / release), plan))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Questions about hot images, with and without caches.",
        arguments,
        models={"type": Path, "help": "a model store; one with a full-size encoder is made where left out"},
        release={"help": "tag of the release in it"},
    )
    plan = Plan(num_images=12, num_kept=6, rounds=1, num_asked=8) if options.quick else Plan()
    with tempfile.TemporaryDirectory() as folder:
        models, release = options.models, options.release
        if models is None:
            models, release = Path(folder), "real-encoder-v1.0.0"
            config = real_encoder()
            create_checkpoint(models, release, config, seed=0, dtype=torch.bfloat16, shards=1, container="safetensors")
        taken, load = run(models, release, plan)
    name = "hot_images" if options.models is None else f"hot_images_{release}"
    report = Report(name, f"Questions about hot images: {release}")
    fill(report, taken, load)
    report.details["plan"] = asdict(plan) | {"zipf": ZIPF, "users": USERS, "answer_tokens": ANSWER_TOKENS}
    report.details["taken"] = {setting: asdict(one) for setting, one in taken.items()}

    def plot(axes: Axes) -> None:
        for setting, one in taken.items():
            times = sorted(1000 * sample.first_s for each in one.samples for sample in each)
            axes.plot(times, np.linspace(0, 100, len(times)), label=setting)
        axes.set(xlabel=f"time to first token at {load:.2g} requests/s, ms", ylabel="requests, %", xscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
