"""Decoding speed with n-gram drafts from the prompt.

Two stacks serve the same release, one with drafts and one without. They take turns on the same conversations, which
describe an image and then ask about it. Decoding is greedy in float32, so both stacks must give the same answers. The
script checks this.
"""

import asyncio
import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from PIL import Image as PillowImage
from PIL import ImageDraw
from rich.progress import Progress

from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.report import Report, parse_arguments
from tandem import AsyncClient, Image, Message, assistant, user
from tandem.commands.engine_stats import read_snapshot
from tandem.stack import Stack, StackConfig

DESCRIBE = "Describe the picture."  # in the words of the demo model's training
QUESTIONS = ("What colour is it?", "Describe the picture again.")
MAX_TOKENS = 96  # of one answer
PLAIN, DRAFTS = "without drafts", "with drafts"
KINDS = (PLAIN, DRAFTS)
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of a conversation."""

    text: str
    num_tokens: int
    decode_ms: float  # from the first token to the last


def image(seed: int) -> bytes:
    """Return a PNG file with one coloured shape."""
    drawing = PillowImage.new("RGB", (224, 224), "white")
    box = (40 + 10 * (seed % 4), 50, 140 + 10 * (seed % 4), 150)
    pen = ImageDraw.Draw(drawing)
    (pen.ellipse if seed % 2 else pen.rectangle)(box, fill=COLOURS[seed % len(COLOURS)])
    file = io.BytesIO()
    drawing.save(file, "PNG")
    return file.getvalue()


async def converse(client: AsyncClient, seed: int) -> list[Turn]:
    """Describe an image, then ask about it."""
    messages: list[Message] = [user(Image(image(seed)), DESCRIBE)]
    turns = []
    for question in (*QUESTIONS, None):
        answer = await client.ask(messages, max_tokens=MAX_TOKENS)
        turns.append(Turn(answer.text, answer.usage.completion_tokens, answer.timings.decode_ms))
        if question is not None:
            messages += [assistant(answer.text or " "), user(question)]
    return turns


async def measure(addresses: dict[str, str], conversations: int) -> dict[str, list[list[Turn]]]:
    """Return the conversations with and without drafts.

    Both stacks take turns, so a change of the machine's speed affects both.
    """
    taken: dict[str, list[list[Turn]]] = {kind: [] for kind in KINDS}
    with Progress() as progress:
        task = progress.add_task("conversing", total=conversations * len(KINDS))
        for kind in KINDS:
            async with AsyncClient(addresses[kind]) as client:  # warm up
                await converse(client, 0)
        for seed in range(conversations):
            for kind in KINDS:
                async with AsyncClient(addresses[kind]) as client:
                    taken[kind].append(await converse(client, seed))
                progress.advance(task)
    return taken


def count_drafts(stack: Stack) -> tuple[float, float]:
    """Return the numbers of accepted and rejected draft tokens."""
    (values,) = read_snapshot(stack.metrics_url("language")).values.values()
    return values["drafts_total/right"], values["drafts_total/wrong"]


def rates(conversations: Sequence[Sequence[Turn]]) -> list[float]:
    """Return the decoding speed of each conversation, tokens/s.

    Conversations without decoding steps are left out.
    """
    totals = [
        (sum(max(0, turn.num_tokens - 1) for turn in turns), sum(turn.decode_ms for turn in turns) / 1000)
        for turns in conversations
    ]
    return [tokens / seconds for tokens, seconds in totals if seconds > 0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments(
        "Measure the speed-up from n-gram drafts.",
        arguments,
        **RELEASE_OPTIONS,
        max_drafts={"type": int, "default": 8, "help": "draft tokens per step, at most (default: 8)"},
    )
    release = chosen_release(options)
    config = {"models": options.models, "release": release, "precision": "float32"}
    flags = ("--max-drafts", str(options.max_drafts))
    with Stack(StackConfig(**config)) as plain, Stack(StackConfig(**config, language_flags=flags)) as drafting:
        addresses = {PLAIN: plain.address, DRAFTS: drafting.address}
        taken = asyncio.run(measure(addresses, 6 if options.quick else 40))
        accepted, rejected = count_drafts(drafting)

    texts = {kind: [[turn.text for turn in turns] for turns in taken[kind]] for kind in KINDS}
    same = sum(one == other for one, other in zip(texts[PLAIN], texts[DRAFTS], strict=True))
    report = Report("speculation", f"Speculative decoding with n-gram drafts: {release}")
    medians = {kind: statistics.median(rates(taken[kind])) for kind in KINDS}
    for kind in KINDS:
        report.add(f"{kind}: decoding, one conversation at a time, p50", medians[kind], "tokens/s")
    report.add("speed-up from drafts", medians[DRAFTS] / medians[PLAIN], "x")
    report.add("accepted drafts", 100 * accepted / max(1.0, accepted + rejected), "%")
    total = len(texts[PLAIN])
    report.add("conversations with equal answers", same, "", aim=f"all {total}", met=same == total)

    def plot(axes: Axes) -> None:
        axes.boxplot([rates(taken[kind]) for kind in KINDS], tick_labels=list(KINDS))
        axes.set(ylabel="decoding speed, tokens/s")

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
