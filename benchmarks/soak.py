"""Memory growth of every process under mixed traffic.

    python -m benchmarks.soak --minutes 20

Requests arrive at random times. There are six kinds: text only, a new image, a known image, a conversation of three
turns, a request that the client cancels during the answer, and an invalid request. Each must end as expected. The
caches are small, so they are full within the first minutes and later growth is a leak. The growth is the slope of a
linear fit to the second half of the samples.
"""

import asyncio
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.images import mosaic
from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.report import Report, parse_arguments
from tandem.client import AsyncClient, Image, assistant, user
from tandem.errors import InvalidArgument, TandemError
from tandem.stack import Stack, StackConfig

MAX_GROWTH_PERCENT = 1.0  # over the second half
SMALL_CACHE_BYTES = 2**20  # of each visual-token cache: about eighty images of the demo model
KV_CACHE_BYTES = 16 * 2**20
KNOWN_IMAGES = 20
TIMEOUT_S = 120.0


@dataclass(slots=True)
class Memory:
    """Memory samples of every process."""

    at_s: list[float] = field(default_factory=list)
    mib: dict[str, list[float]] = field(default_factory=dict)  # resident, by process
    files: dict[str, list[int]] = field(default_factory=dict)  # open descriptors, by process

    def take(self, at_s: float, pids: dict[str, int]) -> None:
        """Take one sample."""
        self.at_s.append(at_s)
        for name, pid in pids.items():
            self.mib.setdefault(name, []).append(resident_mib(pid))
            self.files.setdefault(name, []).append(len(os.listdir(f"/proc/{pid}/fd")))

    def second_half(self, name: str) -> tuple[float, float]:
        """Return a process's growth in the second half.

        The values are MiB/h, and percent over the length of the second half.
        """
        middle = len(self.at_s) // 2
        times, sizes = np.array(self.at_s[middle:]), np.array(self.mib[name][middle:])
        mib_per_s = float(np.polyfit(times, sizes, 1)[0])
        return 3600 * mib_per_s, 100 * mib_per_s * float(times[-1] - times[0]) / float(sizes.mean())


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Traffic:
    """Random requests of every kind.

    Attributes:
        ends: the number of requests by kind and end, which is 'expected' or the reason of an error.
    """

    def __init__(self, client: AsyncClient, seed: int = 0) -> None:
        self._client = client
        self._rng = random.Random(seed)
        self._numbers = itertools.count(KNOWN_IMAGES)
        self._kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "text": self._text,
            "new image": self._new_image,
            "known image": self._known_image,
            "conversation": self._conversation,
            "cancelled": self._cancelled,
            "refused": self._refused,
        }
        self.ends: Counter[tuple[str, str]] = Counter()

    async def run(self, rate: float, until_s: float) -> None:
        """Send requests at random times, on average `rate` per second.

        Ends at `until_s` of the monotonic clock, when all requests have ended.
        """
        async with asyncio.TaskGroup() as running:
            while time.monotonic() < until_s:
                running.create_task(self._send(self._rng.choice(list(self._kinds))))
                await asyncio.sleep(self._rng.expovariate(rate))

    async def _send(self, kind: str) -> None:
        try:
            await self._kinds[kind]()
        except TandemError as error:
            self.ends[kind, error.reason] += 1
        else:
            self.ends[kind, "expected"] += 1

    async def _text(self) -> None:
        await self._ask(f"What is {next(self._numbers)} good for?")

    async def _new_image(self) -> None:
        await self._ask("What colour is the bag?", mosaic(next(self._numbers)))

    async def _known_image(self) -> None:
        await self._ask("Is it made of leather?", mosaic(self._rng.randrange(KNOWN_IMAGES)))

    async def _ask(self, text: str, *images: bytes) -> None:
        await self._client.ask(text, images=images, max_tokens=self._rng.randrange(1, 48), ignore_eos=True)

    async def _conversation(self) -> None:
        turns = [user(Image(mosaic(next(self._numbers))), "What is this?")]
        for text in ("And what colour has it?", "Who is it for?"):
            answer = await self._client.ask(turns, max_tokens=16, min_tokens=1)
            turns += [assistant(answer.text or "A bag."), user(text)]
        await self._client.ask(turns, max_tokens=16)

    async def _cancelled(self) -> None:
        images = [mosaic(next(self._numbers))] * self._rng.randrange(2)
        stream = self._client.generate("Tell me all about it.", images=images, max_tokens=200, ignore_eos=True)
        num_pieces = self._rng.randrange(1, 30)
        async for _ in stream:
            num_pieces -= 1
            if num_pieces == 0:
                break
        stream.close()

    async def _refused(self) -> None:
        whole = mosaic(next(self._numbers))
        text, images = self._rng.choice([("What?", [whole[: len(whole) // 2]]), ("What?", [b"no image"]), (" ", [])])
        try:
            await self._client.ask(text, images=images)
        except InvalidArgument:
            return
        raise AssertionError("an invalid request was answered")


async def soak(stack: Stack, *, minutes: float, rate: float) -> tuple[Memory, Traffic]:
    """Send traffic and sample the memory of every process."""
    memory = Memory()
    every_s = min(5.0, minutes * 60 / 40)
    began_s = time.monotonic()
    async with AsyncClient(stack.address, timeout_s=TIMEOUT_S) as client:
        traffic = Traffic(client)
        sending = asyncio.create_task(traffic.run(rate, began_s + minutes * 60))
        with Progress() as progress:
            bar = progress.add_task("soaking", total=minutes * 60)
            while not sending.done():
                memory.take(time.monotonic() - began_s, stack.pids)
                progress.update(bar, completed=memory.at_s[-1])
                await asyncio.wait([sending], timeout=every_s)
        await sending
    return memory, traffic


def publish(memory: Memory, traffic: Traffic, title: str, json_path: Path | None) -> None:
    """Print the table and write the files."""
    report = Report("soak", title)
    unexpected = sum(count for (_kind, end), count in traffic.ends.items() if end != "expected")
    report.add("requests", traffic.ends.total(), "")
    report.add("requests with an unexpected end", unexpected, "", aim="none", met=unexpected == 0)
    for name in memory.mib:
        mib_per_hour, percent = memory.second_half(name)
        report.add(f"{name}: memory at the end", memory.mib[name][-1], "MiB")
        report.add(f"{name}: growth in the second half", mib_per_hour, "MiB/h")
        aim = f"at most {MAX_GROWTH_PERCENT:g} %"
        report.add(f"{name}: relative growth", percent, "%", aim=aim, met=percent <= MAX_GROWTH_PERCENT)
    report.details["ends"] = {f"{kind}: {end}": count for (kind, end), count in sorted(traffic.ends.items())}
    report.details["memory"] = {"at_s": memory.at_s, "mib": memory.mib, "open_files": memory.files}

    def plot(axes: Axes) -> None:
        for name, sizes in memory.mib.items():
            axes.plot(np.array(memory.at_s) / 60, sizes, label=name)
        axes.set(xlabel="minutes", ylabel="resident memory, MiB", ylim=(0, None))
        axes.legend()

    report.publish(plot, json_path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Soak, print and publish."""
    options = parse_arguments(
        "Measure the memory of every process under mixed traffic.",
        arguments,
        minutes={"type": float, "help": "duration (default: 20, or 0.5 with --quick)"},
        rate={"type": float, "default": 4.0, "help": "requests per second; a conversation counts as one (default: 4)"},
        **RELEASE_OPTIONS,
    )
    minutes = options.minutes or (0.5 if options.quick else 20.0)
    tag = chosen_release(options)
    config = StackConfig(
        models=options.models,
        release=tag,
        threads=1,
        log_level="error",
        vision_flags=("--cache-bytes", str(SMALL_CACHE_BYTES)),
        language_flags=("--kv-cache-bytes", str(KV_CACHE_BYTES)),
        gateway_flags=("--visual-cache-bytes", str(SMALL_CACHE_BYTES)),
    )
    with Stack(config) as stack:
        memory, traffic = asyncio.run(soak(stack, minutes=minutes, rate=options.rate))
    publish(memory, traffic, f"{minutes:g} minutes of mixed traffic: {tag}", options.json)


if __name__ == "__main__":
    main()
