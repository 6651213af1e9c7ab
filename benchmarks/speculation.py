"""What guessing answers from their own prompt saves on conversations that describe an image and then ask about it.

Two stacks on the same release, one that guesses and one that does not, take the same conversations in turn. Greedy and
in float32, so that both must give the same answers, which is checked.
"""

import asyncio
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from PIL import Image as PillowImage
from PIL import ImageDraw
from rich.progress import Progress

from benchmarks.tools.report import Report, parse_arguments
from tandem import AsyncClient, Image, Message, assistant, user
from tandem.commands.engine_stats import read_snapshot
from tandem.commands.up import newest_release
from tandem.stack import Stack, StackConfig

DESCRIBE = "Describe the image."
QUESTIONS = ("What colour is it?", "Describe the image again.")
TOKENS = 96  # most of one answer
KINDS = ("plain", "guessing")
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a conversation."""

    text: str
    num_tokens: int
    decode_ms: float  # from the first token to the last


def image(seed: int) -> bytes:
    """Return a drawing of one coloured shape as a PNG file."""
    drawing = PillowImage.new("RGB", (224, 224), "white")
    box = (40 + 10 * (seed % 4), 50, 140 + 10 * (seed % 4), 150)
    pen = ImageDraw.Draw(drawing)
    (pen.ellipse if seed % 2 else pen.rectangle)(box, fill=COLOURS[seed % len(COLOURS)])
    file = io.BytesIO()
    drawing.save(file, "PNG")
    return file.getvalue()


async def converse(client: AsyncClient, seed: int) -> list[Turn]:
    """Describe an image, then ask about it with all that was said before."""
    messages: list[Message] = [user(Image(image(seed)), DESCRIBE)]
    turns = []
    for question in (*QUESTIONS, None):
        answer = await client.ask(messages, max_tokens=TOKENS)
        turns.append(Turn(answer.text, answer.usage.completion_tokens, answer.timings.decode_ms))
        if question is not None:
            messages += [assistant(answer.text or " "), user(question)]
    return turns


async def measure(addresses: dict[str, str], conversations: int) -> dict[str, list[list[Turn]]]:
    """Return the conversations of each kind, taken in turn so that a drifting machine is fair to both."""
    taken: dict[str, list[list[Turn]]] = {kind: [] for kind in KINDS}
    with Progress() as progress:
        task = progress.add_task("conversing", total=conversations * len(KINDS))
        for kind in KINDS:
            async with AsyncClient(addresses[kind]) as client:  # warm
                await converse(client, 0)
        for seed in range(conversations):
            for kind in KINDS:
                async with AsyncClient(addresses[kind]) as client:
                    taken[kind].append(await converse(client, seed))
                progress.advance(task)
    return taken


def guessed(stack: Stack) -> tuple[float, float]:
    """Return how many tokens a stack guessed right and wrong."""
    (values,) = read_snapshot(stack.metrics_url("language")).values.values()
    return values["drafts_total/right"], values["drafts_total/wrong"]


def rates(conversations: Sequence[Sequence[Turn]]) -> list[float]:
    """Return tokens a second of decoding, for each conversation with anything to decode."""
    totals = [
        (sum(max(0, turn.num_tokens - 1) for turn in turns), sum(turn.decode_ms for turn in turns) / 1000)
        for turns in conversations
    ]
    return [tokens / seconds for tokens, seconds in totals if seconds > 0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "What guessing answers from their own prompt saves.",
        arguments,
        models={"type": Path, "default": Path("models"), "help": "the model store"},
        release={"default": "", "help": "tag of the release; the newest of the store where left out"},
        max_drafts={"type": int, "default": 8, "help": "most tokens guessed at a time"},
    )
    release = options.release or newest_release(options.models)
    config = {"models": options.models, "release": release, "precision": "float32"}
    flags = ("--max-drafts", str(options.max_drafts))
    with Stack(StackConfig(**config)) as plain, Stack(StackConfig(**config, language_flags=flags)) as guessing:
        addresses = {"plain": plain.address, "guessing": guessing.address}
        taken = asyncio.run(measure(addresses, 6 if options.quick else 40))
        right, wrong = guessed(guessing)

    texts = {kind: [[turn.text for turn in turns] for turns in taken[kind]] for kind in KINDS}
    same = sum(one == other for one, other in zip(texts["plain"], texts["guessing"], strict=True))
    report = Report("speculation", f"Guessing ahead: {release}")
    medians = {kind: statistics.median(rates(taken[kind])) for kind in KINDS}
    for kind in KINDS:
        report.add(f"{kind}: decoding, one conversation at a time, p50", medians[kind], "tokens/s")
    report.add("guessing against plain", medians["guessing"] / medians["plain"], "x")
    report.add("guesses that were right", 100 * right / max(1.0, right + wrong), "%")
    report.add(
        "conversations with the same answers",
        same,
        "",
        aim=f"all {len(texts['plain'])}",
        met=same == len(texts["plain"]),
    )

    def plot(axes: Axes) -> None:
        axes.boxplot([rates(taken[kind]) for kind in KINDS], tick_labels=list(KINDS))
        axes.set(ylabel="tokens/s while decoding")

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
