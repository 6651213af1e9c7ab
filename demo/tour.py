"""`make demo`: start the stack, ask three questions about two images, show the cache at work, stop.

python -m demo.tour [--models DIR] [--release TAG] [--images DIR]
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from tandem.client import Answer, Client
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

    image: int  # which of the two
    question: str


STEPS = (
    Step(0, "Describe the image."),
    Step(1, "请描述这张图片。"),
    Step(0, "图里有几件商品？"),  # the first image again: no need to encode it
)


def main(argv: Sequence[str]) -> None:
    """Run the tour."""
    parser = argparse.ArgumentParser(prog="python -m demo.tour", description="Three questions about two images.")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models", help="the model store")
    parser.add_argument("--release", default=RELEASE, help="tag of the release that answers")
    parser.add_argument("--images", type=Path, default=REPOSITORY / "demo" / "images", help="a folder of PNG files")
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
        NotFound: it has fewer.
    """
    images = sorted(folder.glob("*.png"))
    if len(images) < 2:
        raise NotFound(f"The folder {folder} has no two PNG files.")
    return images[0], images[1]


def tour(config: StackConfig, images: tuple[Path, Path]) -> None:
    """Start the stack, ask, show and stop."""
    console = Console(highlight=False)
    started = time.monotonic()
    stack = Stack(config)
    try:
        with console.status(f"Starting vision, language and gateway with {config.release} ..."):
            stack.start()
        seconds = time.monotonic() - started
        processes = ", ".join(f"{name} (process {pid})" for name, pid in stack.pids.items())
        console.print(f"{processes}: ready in {seconds:.1f} s with {config.release}.", soft_wrap=True)
        with Client(stack.address) as client:
            answers = [ask(console, client, images[step.image], step.question) for step in STEPS]
        console.print(cache_verdict(answers[0], answers[-1]), soft_wrap=True)
    finally:
        stack.stop()
    console.print("All three services have stopped.")


def ask(console: Console, client: Client, image: Path, question: str) -> Answer:
    """Ask one question, print the answer as it comes and then where the time went."""
    console.print(Text.assemble("\n", (image.name, "dim"), "  ", (question, "bold")), soft_wrap=True)
    stream = client.generate(question, images=[image], max_tokens=MAX_TOKENS)
    for text in stream:
        console.print(Text(text, "green"), end="", soft_wrap=True)
    console.print()
    console.print(Padding(timing_table(stream.final), (0, 0, 0, 2), expand=False))
    return stream.final


def cache_verdict(first: Answer, again: Answer) -> Text:
    """Return what asking about the same image again saved."""
    before, after = first.images[0], again.images[0]
    if not after.cached:
        return Text("\nThe image was not in the cache when it was asked about again.", "red")
    return Text(
        f"\nThe image of the last question was cached: its visual tokens were at hand after {after.ready_ms:.1f} ms, "
        f"where encoding it had taken {before.ready_ms:.1f} ms.",
        "bold",
    )


if __name__ == "__main__":
    main(sys.argv[1:])
