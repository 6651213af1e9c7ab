"""Does memory stay flat? Mixed traffic on the whole stack for twenty minutes, while the memory of each process is read.

Requests come at random times and are of six kinds: text alone, an image nobody has seen, a known one, a conversation
of three turns, a question whose client leaves amid the answer, and what is refused. Every kind must end as it should.
The caches are made small, so that they are full within the first minutes and what grows after that is a leak. Flat is
judged by a straight line through the second half of the samples.

    python -m benchmarks.soak --minutes 20
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

from benchmarks.latency import make_image
from benchmarks.tools.report import Report, parse_arguments
from checkpoint.store import ModelStore
from tandem.client import AsyncClient, Image, assistant, user
from tandem.errors import InvalidArgument, TandemError
from tandem.stack import Stack, StackConfig

MOST_GROWTH_PERCENT = 1.0  # over the second half, for memory to count as flat
SMALL_CACHE_BYTES = 2**20  # of visual tokens, in each process that keeps them: some eighty images of the demo model
KV_CACHE_BYTES = 16 * 2**20
KNOWN_IMAGES = 20
TIMEOUT_S = 120.0


@dataclass(slots=True)
class Memory:
    """Samples of every process, taken at the same moments."""

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
        """Return how memory grew in the second half: MiB an hour, and percent over its length."""
        middle = len(self.at_s) // 2
        times, sizes = np.array(self.at_s[middle:]), np.array(self.mib[name][middle:])
        mib_per_s = float(np.polyfit(times, sizes, 1)[0])
        return 3600 * mib_per_s, 100 * mib_per_s * float(times[-1] - times[0]) / float(sizes.mean())


def resident_mib(pid: int) -> float:
    """Return the memory of a process that is in RAM, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Traffic:
    """Requests of every kind.

    Attributes:
        ends: how often each kind ended in which way: 'as it should', or the reason of the error.
    """

    def __init__(self, client: AsyncClient, seed: int = 0) -> None:
        self._client = client
        self._draw = random.Random(seed)
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
        """Send requests at random times, `rate` a second on average, until `until_s` of the monotonic clock."""
        async with asyncio.TaskGroup() as running:
            while time.monotonic() < until_s:
                running.create_task(self._one(self._draw.choice(list(self._kinds))))
                await asyncio.sleep(self._draw.expovariate(rate))

    async def _one(self, kind: str) -> None:
        try:
            await self._kinds[kind]()
        except TandemError as error:
            self.ends[kind, error.reason] += 1
        else:
            self.ends[kind, "as it should"] += 1

    async def _text(self) -> None:
        await self._ask(f"What is {next(self._numbers)} good for?")

    async def _new_image(self) -> None:
        await self._ask("What colour is the bag?", make_image(next(self._numbers)))

    async def _known_image(self) -> None:
        await self._ask("Is it made of leather?", make_image(self._draw.randrange(KNOWN_IMAGES)))

    async def _ask(self, text: str, *images: bytes) -> None:
        await self._client.ask(text, images=images, max_tokens=self._draw.randrange(1, 48), ignore_eos=True)

    async def _conversation(self) -> None:
        turns = [user(Image(make_image(next(self._numbers))), "What is this?")]
        for text in ("And what colour has it?", "Who is it for?"):
            answer = await self._client.ask(turns, max_tokens=16, min_tokens=1)
            turns += [assistant(answer.text or "A bag."), user(text)]
        await self._client.ask(turns, max_tokens=16)

    async def _cancelled(self) -> None:
        images = [make_image(next(self._numbers))] * self._draw.randrange(2)
        stream = self._client.generate("Tell me all about it.", images=images, max_tokens=200, ignore_eos=True)
        num_pieces = self._draw.randrange(1, 30)
        async for _ in stream:
            num_pieces -= 1
            if num_pieces == 0:
                break
        stream.close()

    async def _refused(self) -> None:
        whole = make_image(next(self._numbers))
        text, images = self._draw.choice([("What?", [whole[: len(whole) // 2]]), ("What?", [b"no image"]), (" ", [])])
        try:
            await self._client.ask(text, images=images)
        except InvalidArgument:
            return
        raise AssertionError("it was answered")


async def soak(stack: Stack, *, minutes: float, rate: float) -> tuple[Memory, Traffic]:
    """Send traffic for so long, and return what the processes took and how the requests ended."""
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
    wrong = sum(count for (_kind, end), count in traffic.ends.items() if end != "as it should")
    report.add("requests", traffic.ends.total(), "")
    report.add("requests that did not end as they should", wrong, "", aim="none", met=wrong == 0)
    for name in memory.mib:
        mib_per_hour, percent = memory.second_half(name)
        report.add(f"{name}: memory at the end", memory.mib[name][-1], "MiB")
        report.add(f"{name}: growth in the second half", mib_per_hour, "MiB/h")
        aim = f"at most {MOST_GROWTH_PERCENT:g} %"
        report.add(f"{name}: growth over it", percent, "%", aim=aim, met=percent <= MOST_GROWTH_PERCENT)
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
        "Memory of every process under mixed traffic.",
        arguments,
        minutes={"type": float, "help": "how long; twenty where left out, half a one with --quick"},
        rate={"type": float, "default": 4.0, "help": "requests a second; a conversation counts as one"},
        models={"type": Path, "default": Path("models"), "help": "the model store"},
        release={"default": "", "help": "tag of the release; the newest of the store where left out"},
    )
    minutes = options.minutes or (0.5 if options.quick else 20.0)
    tag = options.release or ModelStore(options.models).tags()[-1]
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
