"""Prefix hits and queue times of several language replicas.

Users ask about images of Zipf-like popularity, through real processes: a gateway for each way of routing, one vision
service, and language replicas of the demo model. Four replicas of which each has a quarter of the KV cache are routed
by prefix, and by least load. They are compared with one replica that has the whole cache. Each way of routing has its
own replicas, and rounds are interleaved. The cache has room for the beginnings of about half of the images.
"""

import asyncio
import statistics
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.images import mosaic
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.processes import address_of, running
from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.traffic import QUESTIONS, zipf
from tandem.client import AsyncClient

ONE, PREFIX, LEAST_BUSY = "one replica", "by prefix", "by least load"
REPLICAS = 4
USERS = 24
ANSWER_TOKENS = 16
CACHE_BYTES = 12_000_000  # of all replicas together
AIM_POINTS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size of the measurement."""

    num_images: int = 400
    rounds: int = 5
    num_requests: int = 1500  # in a round

    def draw(self) -> list[list[bytes]]:
        """Return the images of a warm-up and of each round."""
        images = [mosaic(rank) for rank in range(self.num_images)]
        return [zipf(images, self.num_requests, seed) for seed in range(1 + self.rounds)]


@dataclass(slots=True)
class Measured:
    """What one way of routing did, by round."""

    hit_rates: list[float] = field(default_factory=list)  # prompt tokens found in the KV cache, percent
    queue_ms: list[list[float]] = field(default_factory=list)
    requests_per_s: list[float] = field(default_factory=list)


@contextmanager
def gateways(models: Path, tag: str) -> Iterator[dict[str, str]]:
    """Run all processes. Yields the gateway's address by routing."""
    with ExitStack() as stack:
        store = ("--models", str(models))
        vision = stack.enter_context(running("vision_service", [*store, "--tags", tag]))
        addresses = {}
        for name, replicas in ((ONE, 1), (PREFIX, REPLICAS), (LEAST_BUSY, REPLICAS)):
            size = ("--kv-cache-bytes", str(CACHE_BYTES // replicas), "--threads", "1")
            language = [
                stack.enter_context(running("language_service", [*store, "--tags", tag, *size]))
                for _ in range(replicas)
            ]
            stages = ("--vision", address_of(vision), "--language", ",".join(map(address_of, language)))
            routing = ("--routing", "least-busy" if name == LEAST_BUSY else "prefix")
            gateway = running("gateway", [*store, "--release", tag, *stages, *routing])
            addresses[name] = address_of(stack.enter_context(gateway))
        yield addresses


async def ask_all(client: AsyncClient, images: Sequence[bytes], measured: Measured) -> None:
    """Ask about all images with a fixed number of users."""
    queue = iter(list(enumerate(images)))
    answers = []

    async def user() -> None:
        for number, image in queue:
            question = QUESTIONS[number % len(QUESTIONS)]
            answers.append(await client.ask(question, images=[image], max_tokens=ANSWER_TOKENS, ignore_eos=True))

    loop = asyncio.get_running_loop()
    started = loop.time()
    await asyncio.gather(*(user() for _ in range(USERS)))
    measured.requests_per_s.append(len(answers) / (loop.time() - started))
    cached = sum(answer.usage.cached_prompt_tokens for answer in answers)
    measured.hit_rates.append(100 * cached / sum(answer.usage.prompt_tokens for answer in answers))
    measured.queue_ms.append([answer.timings.queue_ms for answer in answers])


async def measure(addresses: dict[str, str], plan: Plan) -> dict[str, Measured]:
    """Measure all ways of routing in turn."""
    measured = {name: Measured() for name in addresses}
    async with AsyncExitStack() as stack:
        clients = {name: await stack.enter_async_context(AsyncClient(one)) for name, one in addresses.items()}
        with Progress() as progress:
            task = progress.add_task("filling the caches", total=len(clients) * (1 + plan.rounds))
            for number, images in enumerate(plan.draw()):
                for name, client in clients.items():
                    await ask_all(client, images, measured[name] if number else Measured())
                    progress.advance(task)
                progress.update(task, description=f"round {number + 1}")
    return measured


def add_figures(report: Report, measured: dict[str, Measured]) -> None:
    """Add the figures and aims to the report."""
    hits = {name: statistics.median(one.hit_rates) for name, one in measured.items()}
    queue = {name: float(np.percentile(np.concatenate(one.queue_ms), 99)) for name, one in measured.items()}
    for name, one in measured.items():
        lost, has_aim = hits[ONE] - hits[name], name == PREFIX
        report.add(
            f"{name}: prompt tokens from the KV cache",
            hits[name],
            "%",
            aim=f"within {AIM_POINTS:g} points of one replica" if has_aim else "",
            met=lost <= AIM_POINTS if has_aim else None,
        )
        report.add(
            f"{name}: time in the queue p99",
            queue[name],
            "ms",
            aim="no worse than by least load" if has_aim else "",
            met=queue[name] <= queue[LEAST_BUSY] if has_aim else None,
        )
        report.add(f"{name}: {USERS} users in a closed loop", statistics.median(one.requests_per_s), "requests/s")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure prefix hits and queue times of several language replicas.", arguments, **RELEASE_OPTIONS
    )
    plan = Plan(num_images=100, rounds=1, num_requests=150) if options.quick else Plan()
    with gateways(options.models, chosen_release(options)) as addresses:
        measured = asyncio.run(measure(addresses, plan))
    report = Report("replica_routing", f"{REPLICAS} language replicas by routing")
    add_figures(report, measured)
    report.details = {
        name: {"hit rates, %": one.hit_rates, "requests/s": one.requests_per_s} for name, one in measured.items()
    }

    def plot(axes: Axes) -> None:
        for name, one in measured.items():
            times = np.sort(np.concatenate(one.queue_ms))
            label = f"{name}, {statistics.median(one.hit_rates):.0f} % of the prompt cached"
            axes.plot(np.maximum(times, 0.01), np.linspace(0, 100, len(times)), label=label)
        axes.set(xlabel="time in the queue, ms", ylabel="requests, %", xscale="log")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
