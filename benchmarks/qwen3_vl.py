"""Questions about images of a Qwen3-VL, compared with vLLM.

    make peers                       # once: installs vLLM under .peers/
    python -m benchmarks.qwen3_vl    # about 25 minutes on two idle cores
    python -m benchmarks.qwen3_vl --quick    # a tiny model, without vLLM

The shape is Qwen3-VL-2B's, the weights are random, in bfloat16. Our three services, through gRPC, and vLLM's OpenAI
server run the same folder at the same time, with two threads each. In every part of a round they take turns, so a
change of the machine's speed affects both. Both decode greedily, ignore the end of sequence and get the same prompts.

Hot images are those of the part before, drawn from a Zipf distribution: both servers have seen them. Without caches,
each of these requests gets its image with other bytes at the end, so that no cache knows it.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.peers.hub_folder import make_hub_folder
from benchmarks.peers.vision_figures import fill, plot
from benchmarks.peers.vision_servers import VLLM, Reply, VisionServer, running_tandem, running_vllm
from benchmarks.tools.images import photograph
from benchmarks.tools.machine import matmul_peak, read_bandwidth
from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.traffic import ZIPF, zipf
from checkpoint.families import Qwen3VLConfig
from checkpoint.presets import PRESETS, TINY_QWEN3_VL

SMALL, LARGE = (448, 448), (1024, 768)
QUESTION = "{:06d}: what is shown, and where?"
FLOODING = 4  # callers that ask about new images while texts are asked
FIRST_TOKENS = 2  # of answers of which only the first token matters


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Size of the measurement."""

    rounds: int = 2
    callers: tuple[int, ...] = (1, 4, 8)
    new_requests: tuple[int, ...] = (2, 4, 8)  # for each number of callers
    hot_requests: tuple[int, ...] = (3, 8, 16)
    first_tokens: tuple[int, int] = (4, 1)  # new images of each size, smaller ones first
    known_questions: int = 3  # about each known image
    texts_at_rest: int = 6
    texts: int = 12  # while images flood
    text_gap_s: float = 4.0  # from one of these texts to the next
    answer_tokens: int = 32


QUICK = Plan(
    rounds=1,
    callers=(1, 4),
    new_requests=(2, 4),
    hot_requests=(2, 4),
    first_tokens=(1, 1),
    known_questions=2,
    texts_at_rest=2,
    texts=3,
    text_gap_s=0.5,
    answer_tokens=8,
)


@dataclass(slots=True)
class Measurements:
    """Measurements of one server, lists by round."""

    first_new_s: dict[str, list[float]] = field(default_factory=dict)  # by size of the image, one of each image
    first_known_s: dict[str, list[list[float]]] = field(default_factory=dict)
    new_per_s: dict[int, list[float]] = field(default_factory=dict)  # by callers
    hot_per_s: dict[int, list[float]] = field(default_factory=dict)
    uncached_per_s: list[float] = field(default_factory=list)  # hot images without caches, most callers
    text_s: list[list[float]] = field(default_factory=list)
    flooded_text_s: list[list[float]] = field(default_factory=list)
    flood_images: list[int] = field(default_factory=list)  # answered while the texts were asked
    first_texts: list[str] = field(default_factory=list)  # of answers about new images
    prompt_tokens: list[int] = field(default_factory=list)
    peak_bytes: int = 0


class Images:
    """New images, the same for every server."""

    def __init__(self) -> None:
        self._seeds = itertools.count()

    def new(self, count: int) -> list[bytes]:
        """Return images that no server has seen."""
        return [photograph(seed, *(LARGE if seed % 4 == 1 else SMALL)) for seed in itertools.islice(self._seeds, count)]

    def of_size(self, size: tuple[int, int]) -> bytes:
        """Return a new image of one size."""
        return photograph(next(self._seeds), *size)


class Rounds:
    """Runs the parts of a round on all servers."""

    def __init__(self, servers: Sequence[VisionServer], plan: Plan, show: Callable[[str], object]) -> None:
        self._show = show  # prints a line above the progress bar
        self.measured = {server.name: Measurements() for server in servers}
        self._servers, self._plan = servers, plan
        self._images = Images()
        self._numbers = itertools.count()

    async def warm_up(self) -> None:
        """Let all servers answer about both sizes and about text."""
        images = [self._images.of_size(SMALL), self._images.of_size(LARGE), None]
        for server in self._servers:
            for image in images:
                await self._ask(server, image, FIRST_TOKENS)

    async def run(self, number: int, progress: Progress) -> None:
        """Run one round."""
        task = progress.add_task("", total=5 + 2 * len(self._plan.callers))
        turn = list(self._servers)[:: -1 if number % 2 else 1]

        def begin(part: str) -> None:
            progress.update(task, description=f"round {number + 1}: {part}", advance=1)
            self._show(part)

        for size, count in zip((SMALL, LARGE), self._plan.first_tokens, strict=True):
            begin(f"first tokens, {size[0]} x {size[1]}")
            for _ in range(count):
                await self._first_tokens(turn, size)
        for callers, new, hot in zip(self._plan.callers, self._plan.new_requests, self._plan.hot_requests, strict=True):
            begin(f"new images, {callers} callers")
            images = self._images.new(new)
            for server in turn:
                rates = self.measured[server.name].new_per_s.setdefault(callers, [])
                rates.append(await self._closed_loop(server, images, callers, is_new=True))
            begin(f"hot images, {callers} callers")
            draws = zipf(images, hot, seed=number)
            for server in turn:
                rates = self.measured[server.name].hot_per_s.setdefault(callers, [])
                rates.append(await self._closed_loop(server, draws, callers))
        begin("hot images without caches")
        await self._without_caches(turn, draws, new)
        begin("text while images flood")
        await self._flood(turn)
        progress.update(task, advance=1)

    async def _first_tokens(self, turn: Sequence[VisionServer], size: tuple[int, int]) -> None:
        image, name = self._images.of_size(size), f"{size[0]} x {size[1]}"
        for server in turn:
            measured = self.measured[server.name]
            measured.first_new_s.setdefault(name, []).append((await self._ask(server, image, FIRST_TOKENS)).first_s)
            known = [await self._ask(server, image, FIRST_TOKENS) for _ in range(self._plan.known_questions)]
            measured.first_known_s.setdefault(name, []).append([reply.first_s for reply in known])
            first_s, known_s = measured.first_new_s[name][-1], measured.first_known_s[name][-1]
            self._show(f"{server.name}: first token after {first_s:.2f} s, then {min(known_s):.2f} s")

    async def _without_caches(self, turn: Sequence[VisionServer], draws: Sequence[bytes], count: int) -> None:
        """Ask our own stack about hot images, caches off."""
        unknown = [image + f"{next(self._numbers)}".encode() for image in draws[:count]]
        for server in turn:
            if server.name == "tandem":
                rate = await self._closed_loop(server, unknown, self._plan.callers[-1])
                self.measured[server.name].uncached_per_s.append(rate)

    async def _flood(self, turn: Sequence[VisionServer]) -> None:
        images = self._images.new(32)
        for server in turn:
            measured = self.measured[server.name]
            measured.text_s.append(await self._texts_at_rest(server))
            stopping, queue, answered = asyncio.Event(), iter(images), itertools.count()

            async def flood(
                server: VisionServer, queue: Iterator[bytes], stopping: asyncio.Event, answered: Iterator[int]
            ) -> None:
                while not stopping.is_set() and (image := next(queue, None)):
                    await self._ask(server, image, self._plan.answer_tokens)
                    next(answered)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(FLOODING):
                    tasks.create_task(flood(server, queue, stopping, answered))
                asked = await asyncio.gather(*(self._ask_later(server, at) for at in range(1, self._plan.texts + 1)))
                measured.flood_images.append(next(answered))
                stopping.set()
            measured.flooded_text_s.append([reply.first_s for reply in asked])
            self._show(f"{server.name}: first tokens {[f'{reply.first_s:.2f} s' for reply in asked]}")

    async def _texts_at_rest(self, server: VisionServer) -> list[float]:
        """Return seconds to first tokens of texts in sequence."""
        texts = range(self._plan.texts_at_rest)
        return [(await self._ask(server, None, FIRST_TOKENS)).first_s for _ in texts]

    async def _ask_later(self, server: VisionServer, number: int) -> Reply:
        """Ask about text at a fixed time, regardless of answers."""
        await asyncio.sleep(number * self._plan.text_gap_s)
        return await self._ask(server, None, FIRST_TOKENS)

    async def _closed_loop(
        self, server: VisionServer, images: Sequence[bytes], callers: int, *, is_new: bool = False
    ) -> float:
        """Return requests/s of callers that ask without a pause."""
        queue = iter(images)

        async def call() -> list[Reply]:
            question = QUESTION.format(0) if is_new else ""
            return [await self._ask(server, image, self._plan.answer_tokens, question) for image in queue]

        start_s = time.perf_counter()
        replies = await asyncio.gather(*(call() for _ in range(callers)))
        elapsed_s = time.perf_counter() - start_s
        self._show(f"{server.name}: {len(images)} answers in {elapsed_s:.1f} s")
        if is_new and callers == 1:  # in order, so that the servers' answers can be compared
            measured = self.measured[server.name]
            measured.first_texts += [reply.first_text for reply in replies[0]]
            measured.prompt_tokens += [reply.prompt_tokens for reply in replies[0]]
        return len(images) / elapsed_s

    async def _ask(self, server: VisionServer, image: bytes | None, max_tokens: int, question: str = "") -> Reply:
        """Ask a question of fixed length, new by default.

        Raises:
            RuntimeError: the answer has another number of tokens.
        """
        reply = await server.ask(question or QUESTION.format(next(self._numbers)), image, max_tokens)
        if reply.answer_tokens != max_tokens:
            raise RuntimeError(f"{server.name} answered with {reply.answer_tokens} tokens instead of {max_tokens}")
        return reply


async def compare(folder: Path, config: Qwen3VLConfig, plan: Plan, *, with_peer: bool, end_s: float) -> Report:
    """Run the servers and all rounds, and return the report."""
    hub = folder / "hub"
    make_hub_folder(hub, config)
    limits = [(matmul_peak(), read_bandwidth(repetitions=3))]
    async with AsyncExitStack() as stack:
        servers: list[VisionServer] = [await stack.enter_async_context(running_tandem(hub, folder / "models"))]
        if with_peer:
            servers.append(stack.enter_context(running_vllm(hub, folder / "vllm.log")))
        with Progress(console=Console(stderr=True)) as progress:
            rounds = Rounds(servers, plan, progress.console.print)
            await rounds.warm_up()
            start_s = time.monotonic()
            for number in range(plan.rounds):
                if number and time.monotonic() + (time.monotonic() - start_s) / number > end_s:
                    break  # another round would last too long
                await rounds.run(number, progress)
                limits.append((matmul_peak(), read_bandwidth(repetitions=3)))
        for server in servers:
            rounds.measured[server.name].peak_bytes = server.peak_bytes()
    report = Report("qwen3_vl", f"{title(config)}, random weights, bfloat16, two threads")
    fill(report, rounds.measured, limits)
    report.details["plan"] = asdict(plan) | {"zipf": ZIPF, "flooding": FLOODING}
    report.details["measurements"] = {name: asdict(one) for name, one in rounds.measured.items()}
    return report


def title(config: Qwen3VLConfig) -> str:
    """Return the name of a configuration."""
    return next((name for name, preset in PRESETS.items() if preset == config), "tiny-qwen3-vl")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Compare questions about images of a released Qwen3-VL with vLLM.",
        arguments,
        preset={"default": "qwen3-vl-2b-instruct", "help": "shape of the model (default: qwen3-vl-2b-instruct)"},
        minutes={"type": float, "default": 25, "help": "begin no round that would end later (default: 25)"},
        folder={
            "type": Path,
            "default": Path(".tandem/qwen3_vl"),
            "help": "folder for the model, 4.3 GB (default: .tandem/qwen3_vl)",
        },
    )
    end_s = time.monotonic() + 60 * options.minutes
    torch.set_num_threads(2)
    if options.quick:
        # More token ids than bytes: most generated tokens are then whole words, which are shown at once.
        language = TINY_QWEN3_VL.language.model_copy(update={"vocab_size": 8192})
        config, plan, folder = TINY_QWEN3_VL.model_copy(update={"language": language}), QUICK, options.folder / "tiny"
    else:
        preset = PRESETS[options.preset]
        if not isinstance(preset, Qwen3VLConfig):
            raise SystemExit(f"{options.preset} is no shape of Qwen3-VL")
        config, plan, folder = preset, Plan(), options.folder
    with_peer = VLLM.installed and not options.quick
    report = asyncio.run(compare(folder.absolute(), config, plan, with_peer=with_peer, end_s=end_s))
    report.publish(lambda axes: plot(axes, report), options.json)


if __name__ == "__main__":
    main()
