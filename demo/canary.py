"""Roll out a better release, then a worse one, under traffic.

`make demo-canary` runs this. Callers ask questions with known answers, one after the other. First v1.1.0 is the canary
over v1.0.0: it is promoted, and the answers become right. Then v1.0.0 is the canary over v1.1.0: it answers the probes
worse, and leaves before a caller sees it.

python -m demo.canary [--models DIR] [--callers N] [--svg FILE]
"""

import argparse
import asyncio
import io
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from demo.evaluate import MAX_TOKENS, Case, make_cases
from tandem.client import AsyncClient, Image, Rollouts, user
from tandem.commands.failures import exit_on_error
from tandem.commands.rollout import parse_steps
from tandem.commands.rollout_view import rollout_view
from tandem.errors import TandemError
from tandem.stack import Stack, StackConfig, interrupt_on_signals
from tandem.v1 import rollout_pb2

WORSE, BETTER = "tandem-demo-v1.0.0", "tandem-demo-v1.1.0"
REPOSITORY = Path(__file__).parents[1]
STEPS = "50:2s,100:1s"
NUM_CASES = 64
_REFRESH_S = 0.25
# Between two questions of a caller. Without it, callers take all of a slow machine, and the probes wait for minutes.
_PAUSE_S = 0.2
_DRAWN_WIDTH = 120  # characters
_ENDED = (rollout_pb2.ROLLOUT_PHASE_PROMOTED, rollout_pb2.ROLLOUT_PHASE_ROLLED_BACK)
_GUARD = rollout_pb2.RolloutGuard(
    max_error_rate_increase=0.05, max_empty_rate_increase=0.05, max_first_token_ratio=1.5, max_quality_drop=0.02
)


def main(argv: Sequence[str]) -> None:
    """Run both rollouts."""
    parser = argparse.ArgumentParser(prog="python -m demo.canary", description="Roll out a better and a worse release.")
    parser.add_argument("--models", type=Path, default=REPOSITORY / "models", help="folder of the model store")
    parser.add_argument("--callers", type=int, default=2, help="callers that ask questions (default: %(default)s)")
    parser.add_argument("--svg", type=Path, help="also draw both final tables in this file")
    arguments = parser.parse_args(argv)
    interrupt_on_signals()
    console = Console(highlight=False)
    ends: list[RenderableType] = []
    try:
        with exit_on_error():
            console.print(f"Starting {WORSE}.")
            with (
                Stack(StackConfig(models=arguments.models, release=WORSE)) as stack,
                Rollouts(stack.address) as rollouts,
            ):
                for stable, canary in ((WORSE, BETTER), (BETTER, WORSE)):
                    console.rule(f"{canary} as the canary over {stable}")
                    ends.append(show(stack.address, rollouts, canary, arguments.callers, console))
            if arguments.svg:
                _draw(ends, arguments.svg)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def show(address: str, rollouts: Rollouts, canary: str, num_callers: int, console: Console) -> RenderableType:
    """Roll out a canary under traffic, with a live table.

    Returns the table at the end.
    """
    with callers(address, num_callers) as traffic:
        started_s = time.monotonic()
        plan = rollout_pb2.RolloutPlan(canary=canary, steps=parse_steps(STEPS), guard=_GUARD)
        rollouts.set(plan)
        with Live(console=console, auto_refresh=False) as live:
            while (rollout := rollouts.get()).phase not in _ENDED:
                live.update(_view(rollout, traffic, started_s), refresh=True)
                time.sleep(_REFRESH_S)
            end = _view(rollout, traffic, started_s)
            live.update(end, refresh=True)
    console.print(Text(f"\n{_verdict(rollout, traffic, time.monotonic() - started_s)}", "bold"))
    return end


@dataclass(slots=True)
class Traffic:
    """Answers that the callers got, by release and verdict."""

    answers: Counter[tuple[str, bool]] = field(default_factory=Counter)  # (release, is right)
    failed: int = 0

    def count(self, release: str, *, right: bool) -> int:
        """Return a release's number of right or wrong answers."""
        return self.answers[release, right]


@contextmanager
def callers(address: str, number: int) -> Iterator[Traffic]:
    """Ask questions on a thread until the block ends."""
    traffic, ending = Traffic(), threading.Event()
    cases = [case for case in make_cases(NUM_CASES, seed=1) if len(case.conversation.turns) == 1]
    thread = threading.Thread(target=lambda: asyncio.run(_ask_all(address, number, cases, traffic, ending)))
    thread.start()
    try:
        yield traffic
    finally:
        ending.set()
        thread.join()


async def _ask_all(address: str, number: int, cases: list[Case], traffic: Traffic, ending: threading.Event) -> None:
    async def ask(caller: int, client: AsyncClient) -> None:
        rng = random.Random(caller)
        while not ending.is_set():
            case = rng.choice(cases)
            (turn,) = case.conversation.turns
            try:
                answer = await client.ask(
                    [user(Image(case.image), turn.question)], temperature=0.0, max_tokens=MAX_TOKENS
                )
            except TandemError:
                traffic.failed += 1
                await asyncio.sleep(0.1)
                continue
            traffic.answers[answer.release.language_tag, answer.text == turn.answer] += 1
            await asyncio.sleep(_PAUSE_S)

    async with AsyncClient(address) as client, asyncio.TaskGroup() as tasks:
        for caller in range(number):
            tasks.create_task(ask(caller, client))


def _view(rollout: rollout_pb2.Rollout, traffic: Traffic, started_s: float) -> RenderableType:
    lines = [
        f"{release} gave callers {traffic.count(release, right=True):,} right and "
        f"{traffic.count(release, right=False):,} wrong answers"
        for release in (rollout.plan.stable, rollout.plan.canary)
    ]
    lines.append(f"{time.monotonic() - started_s:.0f} s")
    return Group(rollout_view(rollout, time.time()), Text("\n".join(lines), "cyan"))


def _verdict(rollout: rollout_pb2.Rollout, traffic: Traffic, seconds: float) -> str:
    canary, wrong = rollout.plan.canary, traffic.count(rollout.plan.canary, right=False)
    if rollout.phase == rollout_pb2.ROLLOUT_PHASE_PROMOTED:
        return f"{canary} was promoted after {seconds:.1f} s. Callers got {wrong} wrong answers from it.\n"
    return f"{canary} left after {seconds:.1f} s. Callers got {wrong} wrong answers from it.\n"


def _draw(ends: Sequence[RenderableType], file: Path) -> None:
    """Draw the final tables as they look in a terminal."""
    console = Console(record=True, width=_DRAWN_WIDTH, file=io.StringIO(), force_terminal=True)
    for end in ends:
        console.print(end, "")
    console.save_svg(str(file), title="make demo-canary")


if __name__ == "__main__":
    main(sys.argv[1:])
