"""Speed of answers with drafts: forced tokens and n-grams.

Three stacks serve the same release: without drafts, with jump-ahead (the tokens that a constraint forces, as by
default), and also with n-gram drafts. They take turns on the same conversations, one or several at the same time:

- JSON: an object that describes an image, by a schema
- conversation: describe an image, then questions about it
- both: half of the conversations of each kind at the same time

Answers are greedy. Drafts must not change them.
"""

import asyncio
import io
import itertools
import json
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from matplotlib.axes import Axes
from PIL import Image as PillowImage
from PIL import ImageDraw
from rich.progress import Progress

from benchmarks.tools.models import RELEASE_OPTIONS, chosen_release
from benchmarks.tools.report import Report, median_ratio, parse_arguments
from tandem import AsyncClient, Image, Message, assistant, user
from tandem.commands.engine_stats import read_snapshot
from tandem.stack import Stack, StackConfig

DESCRIBE = "Describe the picture."  # in the words of the demo model's training
QUESTIONS = ("What colour is it?", "Describe the picture again.")
MAX_TOKENS = 96  # of one answer
PLAIN, JUMPING, DRAFTING = "no drafts", "jump-ahead", "jump-ahead and n-grams"
FLAGS = {PLAIN: ("--no-jump-ahead",), JUMPING: (), DRAFTING: ("--max-drafts", "8")}
JSON, CONVERSATION, BOTH = "JSON", "conversation", "both"
BATCHES = (1, 8, 32)  # conversations at the same time
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SCHEMA = {
    "type": "object",
    "properties": {
        "shape": {"enum": ["circle", "square", "triangle", "other"]},
        "colour": {"enum": [*COLOURS, "other"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
        "is_filled": {"type": "boolean"},
        "description": {"type": "string", "maxLength": 40},
    },
    "required": ["shape", "colour", "count", "is_filled", "description"],
    "additionalProperties": False,
}
Workload = tuple[str, int]  # kind, conversations at the same time


@dataclass(slots=True)
class Samples:
    """What the rounds of one workload gave, by stack."""

    tokens_per_s: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in FLAGS})
    texts: dict[str, list[list[str]]] = field(default_factory=lambda: {name: [] for name in FLAGS})

    def ratio(self, name: str) -> float:
        """Return the speed over that without drafts."""
        return median_ratio(self.tokens_per_s[name], self.tokens_per_s[PLAIN])


def image(seed: int) -> bytes:
    """Return a PNG file with one coloured shape."""
    drawing = PillowImage.new("RGB", (224, 224), "white")
    box = (40 + 10 * (seed % 4), 50, 140 + 10 * (seed % 4), 150)
    pen = ImageDraw.Draw(drawing)
    (pen.ellipse if seed % 2 else pen.rectangle)(box, fill=COLOURS[seed % len(COLOURS)])
    file = io.BytesIO()
    drawing.save(file, "PNG")
    return file.getvalue()


async def describe_as_json(client: AsyncClient, seed: int) -> tuple[list[str], int]:
    """Return an answer by the schema, and its tokens."""
    answer = await client.ask([user(Image(image(seed)), DESCRIBE)], max_tokens=MAX_TOKENS, json_schema=SCHEMA)
    if answer.finish_reason == "stop":
        json.loads(answer.text)
    return [answer.text], answer.usage.completion_tokens


async def converse(client: AsyncClient, seed: int) -> tuple[list[str], int]:
    """Describe an image, then ask about it.

    Returns the answers and all their tokens.
    """
    messages: list[Message] = [user(Image(image(seed)), DESCRIBE)]
    texts, num_tokens = [], 0
    for question in (*QUESTIONS, None):
        answer = await client.ask(messages, max_tokens=MAX_TOKENS)
        texts.append(answer.text)
        num_tokens += answer.usage.completion_tokens
        if question is not None:
            messages += [assistant(answer.text or " "), user(question)]
    return texts, num_tokens


async def run_round(client: AsyncClient, workload: Workload, number: int) -> tuple[list[str], float]:
    """Hold all conversations of a round at the same time.

    Returns all answers, and tokens a second.
    """
    kind, batch = workload
    talks = {JSON: [describe_as_json], CONVERSATION: [converse], BOTH: [describe_as_json, converse]}[kind]
    started_s = time.perf_counter()
    held = await asyncio.gather(
        *(talk(client, number * batch + place) for place, talk in zip(range(batch), itertools.cycle(talks)))
    )
    seconds = time.perf_counter() - started_s
    return [text for texts, _ in held for text in texts], sum(tokens for _, tokens in held) / seconds


async def measure(addresses: dict[str, str], workloads: dict[Workload, int]) -> dict[Workload, Samples]:
    """Run the rounds of each workload.

    The stacks take turns, so a change of the machine's speed affects all of them.
    """
    measured = {workload: Samples() for workload in workloads}
    with Progress() as progress:
        task = progress.add_task("conversing", total=sum(workloads.values()))
        for workload, rounds in workloads.items():
            samples = measured[workload]
            for number in range(-1, rounds):
                for name, address in addresses.items():
                    async with AsyncClient(address) as client:
                        texts, speed = await run_round(client, workload, max(number, 0))
                    if number >= 0:  # the first round warms up
                        samples.tokens_per_s[name].append(speed)
                        samples.texts[name].append(texts)
                progress.advance(task, int(number >= 0))
    return measured


def count_drafts(stack: Stack) -> dict[str, float]:
    """Return the numbers of draft tokens by outcome."""
    (values,) = read_snapshot(stack.metrics_url("language")).values.values()
    return {outcome: values[f"drafts_total/{outcome}"] for outcome in ("forced", "right", "wrong")}


def fill(report: Report, measured: dict[Workload, Samples]) -> None:
    """Add the figures of all workloads."""
    for (kind, batch), samples in measured.items():
        name = f"{kind}, {batch} at the same time"
        report.add(f"{name}: {PLAIN}, p50", statistics.median(samples.tokens_per_s[PLAIN]), "tokens/s")
        for other in (JUMPING, DRAFTING):
            ratio, aim = samples.ratio(other), 1.5 if kind == JSON else 0.98
            report.add(f"{name}: {other} / {PLAIN}", ratio, "x", aim=f"at least {aim}", met=ratio >= aim)
    answers = {
        name: [text for one in measured.values() for texts in one.texts[name] for text in texts] for name in FLAGS
    }
    total = len(answers[PLAIN])
    same = sum(len(set(texts)) == 1 for texts in zip(*answers.values(), strict=True))
    report.add("answers that are equal in all stacks", same, "", aim=f"all {total}", met=same == total)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and publish."""
    options = parse_arguments("Measure the speed-up from drafts.", arguments, **RELEASE_OPTIONS)
    release = chosen_release(options)
    rounds = {1: 4, 8: 2} if options.quick else {1: 40, 8: 15, 32: 9}
    workloads = {(kind, batch): rounds[batch] for kind in (JSON, CONVERSATION) for batch in rounds}
    workloads[BOTH, 8] = rounds[8]
    with ExitStack() as opened:
        stacks = {
            name: opened.enter_context(Stack(StackConfig(models=options.models, release=release, language_flags=flags)))
            for name, flags in FLAGS.items()
        }
        measured = asyncio.run(measure({name: stack.address for name, stack in stacks.items()}, workloads))
        drafts = count_drafts(stacks[DRAFTING])

    report = Report("speculation", f"Drafts from constraints and n-grams: {release}")
    fill(report, measured)
    report.add(
        "n-gram drafts that were right", 100 * drafts["right"] / max(1.0, drafts["right"] + drafts["wrong"]), "%"
    )
    report.details["drafts"] = drafts

    def plot(axes: Axes) -> None:
        names = [f"{kind}\n{batch}" for kind, batch in measured]
        for place, other in enumerate((JUMPING, DRAFTING)):
            places = [number + 0.4 * place - 0.2 for number in range(len(names))]
            axes.bar(places, [samples.ratio(other) for samples in measured.values()], 0.38, label=other)
        axes.axhline(1, color="grey", linewidth=1)
        axes.set_xticks(range(len(names)), names)
        axes.set(ylabel=f"tokens/s, {PLAIN} = 1")
        axes.legend()

    report.publish(plot, options.json)


if __name__ == "__main__":
    main()
