"""Measure how often the guard of a rollout errs.

Time and traffic are simulated, so a minute with 50 requests per second takes milliseconds. The decisions are real: they
come from `gateway.rollout.policy.controller.tick`, on the counts that a gateway would have. Each kind of canary is
rolled out many times. `benchmarks.rollout_attacks` rolls canaries out under attack.

A false rollback is the rollback of a canary within its bounds. A false promotion is the promotion of a canary beyond a
bound. Harmed requests are those that a bad canary failed, left empty, or answered wrong, late or never. A hanging
request waits until it is overdue, and is counted then.

Before the steps both releases answer 1,000 simulated probes in eight topics. Another release of the same quality loses
0.5 % of them and gains as many.
"""

from argparse import Namespace
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.progress import Progress

from benchmarks.tools.hostile_callers import SHARE, HostileCallers
from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.simulated_canaries import (
    CANARIES,
    STABLE,
    Behaviour,
    answer_probes,
    count_signs,
    draw_times,
    rate_answers,
)
from gateway.rollout.policy.controller import begin, start, tick
from gateway.rollout.policy.counts import Arm, Counts
from gateway.rollout.policy.guard import num_comparable
from gateway.rollout.policy.histograms import bucket_of
from gateway.rollout.policy.plan import Plan, read_plan
from gateway.rollout.policy.state import Phase, State

REQUESTS_PER_S = 50.0
TICK_S = 1.0
# Later ticks are longer, as the guard looks again when the counts have grown by a fifth.
TICK_GROWTH = 0.02
GIVE_UP_S = 3600.0  # a canary exactly at a bound may be held forever, which counts as neither error
STEPS = ((1, 60.0), (5, 60.0), (25, 60.0), (50, 60.0), (100, 0.0))  # percent, seconds
GUARD = {
    "max_error_rate_increase": 0.02,
    "max_empty_rate_increase": 0.02,
    "max_first_token_ratio": 1.5,
    "max_inter_token_ratio": 1.5,
    "max_repetition_increase": 0.02,
    "max_wrong_script_increase": 0.02,
    "max_constraint_increase": 0.02,
    "max_dislike_increase": 0.05,
    "max_quality_drop": 0.02,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "repetitions": {"type": int, "default": 200, "help": "rollouts of each kind of canary"}
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one simulated rollout ended."""

    phase: str
    seconds: float
    num_canary: int  # requests the canary answered
    num_harmed: int  # of these, answered worse than stable would have


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and publish the results."""
    options = parse_arguments("Measure how often the guard of a rollout errs.", arguments, **OPTIONS)
    kinds = [name for name, (behaviour, _) in CANARIES.items() if behaviour.attack is None]
    roll_out(Report("rollout_simulation", "Rollouts"), kinds, options)


def roll_out(report: Report, kinds: Sequence[str], options: Namespace) -> None:
    """Roll canaries out many times, and publish the results.

    Args:
        report: without figures.
        kinds: of canaries.
        options: of the command line.
    """
    repetitions = 8 if options.quick else options.repetitions
    outcomes: dict[str, list[Outcome]] = {kind: [] for kind in kinds}
    tasks = [(kind, seed) for kind in kinds for seed in range(repetitions)]
    with ProcessPoolExecutor(max_workers=2) as workers, Progress() as progress:
        bar = progress.add_task("rolling out", total=len(tasks))
        for (kind, _), outcome in zip(tasks, workers.map(simulate, tasks, chunksize=4), strict=True):
            outcomes[kind].append(outcome)
            progress.advance(bar)

    report.title += f" judged {repetitions} times for each kind of canary"
    report.details = {kind: summary(ended) for kind, ended in outcomes.items()}
    for kind, ended in outcomes.items():
        add_figures(report, kind, CANARIES[kind][1], ended)
    report.publish(lambda axes: plot(axes, report.details), options.json)


def simulate(task: tuple[str, int]) -> Outcome:
    """Simulate the rollout of one canary."""
    name, seed = task
    behaviour, kind = CANARIES[name]
    random = np.random.default_rng([seed, list(CANARIES).index(name)])
    prepared = begin(None, plan(), in_force="demo-v1.0.0", rollout_id=str(seed), now_s=0)
    state = start(prepared, 0, answer_probes(behaviour, random))
    hostile = (
        HostileCallers(
            behaviour.attack,
            random,
            all_count=behaviour.all_count,
            num_gateways=behaviour.num_gateways,
            shares_keys=behaviour.shares_keys,
        )
        if behaviour.attack is not None
        else None
    )
    step = RunningStep(behaviour, random, hostile)
    now_s, num_canary, num_harmed = 0.0, 0, 0
    while state.phase is Phase.RUNNING and now_s < GIVE_UP_S:
        seconds = max(TICK_S, TICK_GROWTH * (now_s - state.step_started_s))
        now_s += seconds
        on_canary, bad = step.serve(state, seconds, now_s)
        num_canary += on_canary
        num_harmed += harmed(behaviour, on_canary, bad) if kind == "bad" else 0
        following = tick(state, step.counts, now_s) or state
        if following.window != state.window:
            step = RunningStep(behaviour, random, hostile)
        state = following
    return Outcome(phase_of(state), now_s, num_canary, num_harmed)


class RunningStep:
    """The requests of one step, as its gateways count them."""

    def __init__(
        self, behaviour: Behaviour, random: np.random.Generator, hostile: HostileCallers | None = None
    ) -> None:
        self.counts = Counts()
        self._hostile = hostile
        if hostile is not None:
            hostile.begin_step()
        self._behaviour = behaviour
        self._random = random
        self._hanging: deque[tuple[float, int]] = deque()  # pairs of start time and number of requests
        self._undrawn: Counter[Arm] = Counter()  # answers whose times are drawn at the next look

    def serve(self, state: State, seconds: float, now_s: float) -> tuple[int, int]:
        """Serve users for some seconds before `now_s`.

        Return the canary's requests, and how many of them failed, hang or were answered with nothing.
        """
        total = self._random.poisson(REQUESTS_PER_S * seconds * (1 if self._hostile is None else 1 - SHARE))
        on_canary = int(self._random.binomial(total, state.weight_percent / 100))
        num_hanging = int(self._random.binomial(on_canary, self._behaviour.hang_rate))
        self._answer("stable", STABLE, total - on_canary)
        bad = num_hanging + self._answer("canary", self._behaviour, on_canary - num_hanging)
        arms: tuple[tuple[Arm, Behaviour, int], ...] = (
            ("stable", STABLE, total - on_canary),
            ("canary", self._behaviour, on_canary),
        )
        for arm, behaviour, answers in arms:
            count_signs(self.counts, arm, behaviour, answers, self._random)
            rate_answers(self.counts, arm, self._behaviour, answers, self._random)
        if self._hostile is not None:
            self._hostile.add_honest("stable", total - on_canary)
            self._hostile.add_honest("canary", on_canary)
            self._hostile.serve(self.counts, state, REQUESTS_PER_S, seconds)
        self._hanging.append((now_s, num_hanging))
        count_overdue(self.counts, self._hanging, now_s, state.plan.guard.overdue_s)
        in_time = int(self._random.poisson((on_canary - num_hanging) / seconds * self._behaviour.first_token_s))
        waiting = in_time + sum(number for _, number in self._hanging)
        self.counts.add("canary", "waiting", waiting - self.counts.number("canary", "waiting"))
        if is_look_due(state, self.counts, now_s):
            draw_times(self.counts, "stable", STABLE, self._undrawn.pop("stable", 0), self._random)
            draw_times(self.counts, "canary", self._behaviour, self._undrawn.pop("canary", 0), self._random)
        return on_canary, bad

    def _answer(self, arm: Arm, behaviour: Behaviour, requests: int) -> int:
        """Return the requests that failed or were answered with nothing."""
        error_rate, empty_rate = behaviour.error_rate, min(behaviour.empty_rate, 1 - behaviour.error_rate)
        drawn = self._random.multinomial(requests, [error_rate, empty_rate, 1 - error_rate - empty_rate])
        errors, empty = int(drawn[0]), int(drawn[1])
        self.counts.add(arm, "requests", requests)
        self.counts.add(arm, "errors", errors)
        self.counts.add(arm, "empty", empty)
        self._undrawn[arm] += requests - errors
        return errors + empty


def plan() -> Plan:
    """Return the plan of every simulated rollout."""
    steps = [{"weight_percent": weight, "seconds": seconds} for weight, seconds in STEPS]
    return read_plan({"stable": "demo-v1.0.0", "canary": "demo-v1.1.0", "steps": steps, "guard": GUARD})


def is_look_due(state: State, counts: Counts, now_s: float) -> bool:
    """Return whether the guard looks at times now."""
    comparable, looks = num_comparable(counts), state.looks
    is_over = now_s - state.step_started_s >= state.current_step.seconds
    return comparable >= looks.next_at or (is_over and comparable >= looks.final_next_at)


def count_overdue(counts: Counts, hanging: deque[tuple[float, int]], now_s: float, overdue_s: float) -> None:
    """Count the hanging requests that are overdue by now."""
    while hanging and hanging[0][0] + overdue_s <= now_s:
        _, number = hanging.popleft()
        counts.add("canary", "requests", number)
        counts.add("canary", "errors", number)
        counts.add("canary", "overdue", number)
        counts.add_time("canary", "first_token", "text", bucket_of(overdue_s), number)


def harmed(behaviour: Behaviour, requests: int, bad: int) -> int:
    """Return the number of harmed requests.

    A slow canary harms all of them. Of answers that are wrong, loop, are in another script or break a constraint, it is
    the mean number.
    """
    is_slow = behaviour.first_token_s > STABLE.first_token_s or behaviour.inter_token_s > STABLE.inter_token_s
    worse = behaviour.wrong_rate + behaviour.sign_rate - STABLE.sign_rate
    return requests if is_slow else bad + round(requests * worse)


def phase_of(state: State) -> str:
    """Return the phase a rollout ended in, or 'held'."""
    return "held" if state.phase is Phase.RUNNING else str(state.phase)


def add_figures(report: Report, name: str, kind: str, ended: list[Outcome]) -> None:
    """Add the figures of one kind of canary."""
    share = {phase: sum(one.phase == phase for one in ended) / len(ended) for phase in ("promoted", "rolled_back")}
    back, promoted = share["rolled_back"], share["promoted"]
    if kind == "undefended":
        report.add(f"{name}: false rollback", 100 * back, "%")
        return
    if kind != "bad":
        report.add(f"{name}: false rollback", 100 * back, "%", aim="at most 1 %", met=back <= 0.01)
    if kind != "good":
        report.add(f"{name}: false promotion", 100 * promoted, "%", aim="at most 5 %", met=promoted <= 0.05)
    if kind == "good":
        report.add(f"{name}: promoted", 100 * promoted, "%")
    if kind == "bad":
        report.add(f"{name}: rolled back", 100 * back, "%")
        report.add(f"{name}: requests harmed, median", float(np.median([one.num_harmed for one in ended])), "requests")
    report.add(f"{name}: decided after, median", float(np.median([one.seconds for one in ended])), "s")


def summary(ended: list[Outcome]) -> dict[str, dict[str, float]]:
    """Return phases and percentiles for one kind of canary."""
    phases = {phase: sum(one.phase == phase for one in ended) for phase in ("promoted", "rolled_back", "held")}
    numbers = {
        "seconds": [one.seconds for one in ended],
        "canary_requests": [one.num_canary for one in ended],
        "harmed_requests": [one.num_harmed for one in ended],
    }
    shares = (0, 10, 50, 90, 100)
    spread = {
        name: {f"p{share}": float(np.percentile(np.array(of, dtype=float), share)) for share in shares}
        for name, of in numbers.items()
    }
    return {"phases": {phase: float(count) for phase, count in phases.items()}, **spread}


def plot(axes: Axes, details: dict[str, dict[str, dict[str, float]]]) -> None:
    """Draw how the rollouts of each kind of canary ended."""
    left = np.zeros(len(details))
    repetitions = np.array([sum(one["phases"].values()) for one in details.values()])
    for phase, colour in (("promoted", "tab:green"), ("held", "tab:gray"), ("rolled_back", "tab:red")):
        share = 100 * np.array([one["phases"][phase] for one in details.values()]) / repetitions
        axes.barh(list(details), share, left=left, color=colour, label=phase.replace("_", " "))
        left += share
    for row, (name, one) in enumerate(details.items()):
        words = f"after {one['seconds']['p50']:.0f} s"
        if CANARIES[name][1] == "bad":
            words = f"{one['harmed_requests']['p50']:,.0f} requests harmed, {words}"
        axes.text(50, row, words, ha="center", va="center_baseline", color="white", fontsize=6)
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(xlabel="share of rollouts, %; medians in the bars")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=3, frameon=False)


if __name__ == "__main__":
    main()
