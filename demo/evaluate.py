"""Measure the accuracy of a release through the running stack.

    python -m demo.evaluate --release tandem-demo-v1.1.0

Every question goes through gateway, vision service and language service, like a client's. An answer counts as right
only if it matches exactly. In a conversation of two turns both answers must match. Each question is also asked about a
different image: an answer that is still right then did not come from the image.
"""

import argparse
import asyncio
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from demo.drawing import draw
from demo.questions import LANGUAGES, TOPICS, Conversation, Language, Topic, ask
from demo.scenes import HELD_OUT_SEEDS, make_scene
from tandem.client import AsyncClient, Image, Message, assistant, user
from tandem.commands.failures import exit_on_error
from tandem.stack import Stack, StackConfig

QUESTIONS_PER_IMAGE = 4
SEEDS_PER_EVALUATION = 1_000_000  # evaluations with different seeds share no image
MAX_TOKENS = 96  # more than the longest right answer
NUM_IN_FLIGHT = 16
NUM_EXAMPLES = 20  # wrong answers kept in the report


@dataclass(frozen=True, slots=True)
class Case:
    """A conversation and the two images it is asked about."""

    scene_seed: int
    conversation: Conversation
    image: bytes  # PNG
    other_image: bytes  # PNG, of another scene


@dataclass(frozen=True, slots=True)
class Outcome:
    """Answers to one case."""

    case: Case
    answers: tuple[str, ...]  # about the right image
    right: bool
    right_when_swapped: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Shares of right answers in a set of questions."""

    questions: int
    right: float  # share, 0..1
    right_when_swapped: float  # share, 0..1


def make_cases(num_questions: int, seed: int) -> list[Case]:
    """Make the questions of an evaluation.

    Languages and topics take turns. The images come from seeds that training never uses.
    """
    num_images = -(-num_questions // QUESTIONS_PER_IMAGE)
    first = seed * SEEDS_PER_EVALUATION
    # One extra image, to swap the last one for.
    seeds = HELD_OUT_SEEDS[first : first + num_images + 1]
    scenes = [make_scene(seed) for seed in seeds]
    images = [to_png(seed) for seed in seeds]
    cases = []
    for number in range(num_questions):
        index = number // QUESTIONS_PER_IMAGE
        language = LANGUAGES[number % len(LANGUAGES)]
        topic = TOPICS[number // len(LANGUAGES) % len(TOPICS)]
        conversation = ask(scenes[index], random.Random(f"{seeds[index]} {number}"), language, topic)
        cases.append(Case(seeds[index], conversation, images[index], images[index + 1]))
    return cases


def to_png(scene_seed: int) -> bytes:
    """Draw the scene of a seed as a PNG file."""
    file = io.BytesIO()
    draw(make_scene(scene_seed)).save(file, "PNG")
    return file.getvalue()


async def converse(client: AsyncClient, release: str, conversation: Conversation, image: bytes) -> tuple[str, ...]:
    """Ask a conversation's questions, keeping the model's answers as history."""
    messages: list[Message] = []
    answers: list[str] = []
    for turn in conversation.turns:
        messages.append(user(turn.question) if messages else user(Image(image), turn.question))
        answer = await client.ask(messages, release=release, temperature=0.0, max_tokens=MAX_TOKENS)
        messages.append(assistant(answer.text))
        answers.append(answer.text)
    return tuple(answers)


async def evaluate(address: str, release: str, cases: Sequence[Case], progress: Progress) -> list[Outcome]:
    """Ask every case about both its images, many at once."""
    bar = progress.add_task(release, total=len(cases))
    slots = asyncio.Semaphore(NUM_IN_FLIGHT)

    async def try_case(client: AsyncClient, case: Case) -> Outcome:
        async with slots:
            answers = await converse(client, release, case.conversation, case.image)
            swapped = await converse(client, release, case.conversation, case.other_image)
        progress.advance(bar)
        expected = tuple(turn.answer for turn in case.conversation.turns)
        return Outcome(case, answers, answers == expected, swapped == expected)

    async with AsyncClient(address) as client:
        return await asyncio.gather(*(try_case(client, case) for case in cases))


def score(outcomes: Sequence[Outcome], language: Language | None = None, topic: Topic | None = None) -> Score:
    """Score the outcomes of one language and topic, or all."""
    chosen = [
        outcome
        for outcome in outcomes
        if language in (None, outcome.case.conversation.language) and topic in (None, outcome.case.conversation.topic)
    ]
    number = max(1, len(chosen))
    return Score(
        questions=len(chosen),
        right=sum(outcome.right for outcome in chosen) / number,
        right_when_swapped=sum(outcome.right_when_swapped for outcome in chosen) / number,
    )


def table(release: str, outcomes: Sequence[Outcome]) -> Table:
    """Return a table of scores by topic and language."""
    shown = Table(title=f"{release}: share of exactly right answers, {len(outcomes):,} questions")
    shown.add_column("topic")
    for name in (*LANGUAGES, "both"):
        shown.add_column(f"{name}\nimage", justify="right")
        shown.add_column("\nswapped", justify="right", style="dim")
    for topic in (*TOPICS, None):
        cells = []
        for language in (*LANGUAGES, None):
            part = score(outcomes, language, topic)
            cells += [f"{part.right:.1%}", f"{part.right_when_swapped:.1%}"]
        shown.add_row(topic or "all", *cells, end_section=topic == TOPICS[-1])
    return shown


def report(release: str, seed: int, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return scores and some wrong answers as JSON-serializable data."""
    return {
        "release": release,
        "seed": seed,
        "scores": [
            {
                "language": language or "both",
                "topic": topic or "all",
                "questions": part.questions,
                "right": round(part.right, 4),
                "right_when_swapped": round(part.right_when_swapped, 4),
            }
            for language in (*LANGUAGES, None)
            for topic in (*TOPICS, None)
            for part in [score(outcomes, language, topic)]
        ],
        "wrong": [
            {
                "scene_seed": outcome.case.scene_seed,
                "asked": [turn.question for turn in outcome.case.conversation.turns],
                "expected": [turn.answer for turn in outcome.case.conversation.turns],
                "answered": outcome.answers,
            }
            for outcome in outcomes
            if not outcome.right
        ][:NUM_EXAMPLES],
    }


def measure(stack: StackConfig, num_questions: int, seed: int, console: Console) -> list[Outcome]:
    """Start a stack, evaluate its release and stop it."""
    with Stack(stack) as running:
        return measure_at(running.address, stack.release, num_questions, seed, console)


def measure_at(address: str, release: str, num_questions: int, seed: int, console: Console) -> list[Outcome]:
    """Evaluate a release through the gateway at `address`."""
    with Progress(console=console, transient=True) as progress:
        return asyncio.run(evaluate(address, release, make_cases(num_questions, seed), progress))


def add_evaluation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose questions and model store."""
    most = QUESTIONS_PER_IMAGE * (SEEDS_PER_EVALUATION - 1)
    parser.add_argument(
        "--questions", type=_number_in(range(1, most + 1)), default=2000, help="number of questions (default: 2000)"
    )
    seeds = range(len(HELD_OUT_SEEDS) // SEEDS_PER_EVALUATION)
    parser.add_argument(
        "--seed", type=_number_in(seeds), default=0, help="selects the images; training uses none of them (default: 0)"
    )
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the model store")


def _number_in(allowed: range) -> Callable[[str], int]:
    """Return an argparse type for integers in a range."""

    def number(text: str) -> int:
        if int(text) not in allowed:
            raise argparse.ArgumentTypeError(f"must be {allowed[0]} to {allowed[-1]}")
        return int(text)

    return number


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.evaluate", description="Measure the accuracy of a release of the demo model."
    )
    parser.add_argument("--release", default="tandem-demo-v1.1.0", help="tag of the release (default: %(default)s)")
    parser.add_argument("--address", help="use the gateway at this HOST:PORT instead of starting a stack")
    parser.add_argument("--json", type=Path, help="write the scores and some wrong answers to this file")
    add_evaluation_arguments(parser)
    arguments = parser.parse_args()
    console, release = Console(), arguments.release
    with exit_on_error():
        if arguments.address:
            outcomes = measure_at(arguments.address, release, arguments.questions, arguments.seed, console)
        else:
            stack = StackConfig(models=arguments.models, release=release)
            outcomes = measure(stack, arguments.questions, arguments.seed, console)
    console.print(table(release, outcomes))
    if arguments.json:
        scores = json.dumps(report(release, arguments.seed, outcomes), indent=2, ensure_ascii=False)
        arguments.json.write_text(scores + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
