"""Start the stack, ask three questions about two images, stop.

`make demo` runs this. The last question shows the effect of the visual cache.

python -m demo.tour [--models DIR] [--release TAG] [--images DIR]
"""

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tandem.client import Answer, AsyncClient
from tandem.commands.failures import exit_on_error
from tandem.commands.report import timing_table
from tandem.errors import NotFound
from tandem.stack import Stack, StackConfig, interrupt_on_signals

RELEASE = "tandem-demo-v1.1.0"
MAX_TOKENS = 96  # more than the longest sentence of the demo
REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Step:
    """One question of the tour."""

    image: int  # index of the image
    question: str


STEPS = (
    Step(0, "Describe the picture."),  # in the training's words: the model does not know "image"
    Step(1, "请描述这张图片。"),
    Step(0, "图里有几件商品？"),  # the first image again, now a cache hit
)


def main(argv: Sequence[str]) -> None:
    """Run the tour."""
    parser = argparse.ArgumentParser(prog="python -m demo.tour", description="Ask three questions about two images.")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models", help="folder of the model store")
    parser.add_argument("--release", default=RELEASE, help="tag of the release that answers")
    parser.add_argument(
        "--images", type=Path, default=REPOSITORY / "demo" / "images", help="folder with at least two PNG files"
    )
    arguments = parser.parse_args(argv)
    interrupt_on_signals()
    try:
        with exit_on_error():
            tour(StackConfig(models=arguments.models, release=arguments.release), find_images(arguments.images))
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def find_images(folder: Path) -> tuple[Path, Path]:
    """Return the first two images of a folder.

    Raises:
        NotFound: the folder has fewer than two PNG files.
    """
    images = sorted(folder.glob("*.png"))
    if len(images) < 2:
        raise NotFound(f"{folder} has fewer than two PNG files; name a folder with two with --images.")
    return images[0], images[1]


def tour(config: StackConfig, images: tuple[Path, Path]) -> None:
    """Start the stack, ask the questions and stop it again."""
    console = Console(highlight=False)
    started = time.monotonic()
    stack = Stack(config)
    try:
        with console.status(f"Starting vision, language and gateway with {config.release} ..."):
            stack.start()
        seconds = time.monotonic() - started
        processes = ", ".join(f"{name} (process {pid})" for name, pid in stack.pids.items())
        console.print(f"{processes}: ready in {seconds:.1f} s with {config.release}.", soft_wrap=True)
        answers = asyncio.run(ask_all(console, stack.address, images))
        console.print(cache_verdict(answers[0], answers[-1]), soft_wrap=True)
    finally:
        stack.stop()
    console.print("All three services have stopped.")


async def ask_all(console: Console, address: str, images: tuple[Path, Path]) -> list[Answer]:
    """Ask all questions of the tour."""
    async with AsyncClient(address) as client:
        return [await ask(console, client, images[step.image], step.question) for step in STEPS]


async def ask(console: Console, client: AsyncClient, image: Path, question: str) -> Answer:
    """Ask one question, stream its answer and print the timings."""
    console.print(Text.assemble("\n", (image.name, "dim"), "  ", (question, "bold")), soft_wrap=True)
    stream = client.generate(question, images=[image], max_tokens=MAX_TOKENS)
    async for text in stream:
        console.print(Text(text, "green"), end="", soft_wrap=True)
    console.print()
    console.print(Padding(timing_table(stream.final), (0, 0, 0, 2), expand=False))
    return stream.final


def cache_verdict(first: Answer, again: Answer) -> Text:
    """Return a sentence about the time the cache hit saved."""
    before, after = first.images[0], again.images[0]
    if not after.cached:
        return Text("\nThe last question's image was a cache miss. A hit was expected.", "red")
    return Text(
        f"\nThe last question's image was a cache hit: its visual tokens were ready after {after.ready_ms:.1f} ms. "
        f"Encoding it for the first question took {before.ready_ms:.1f} ms.",
        "bold",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
