"""Decide on rollouts: pure functions of state, counts and time.

An operator sets a `Plan`. `controller` makes a `State` of it and decides its next state from the `Counts` of the
running step. For this it asks the guard, which compares both releases with the tests in `significance` and reports a
`Finding` for each metric. `answer_means` does the same for means, with the test in `means`. Before the steps it
compares the releases' answers to probes (`probing`, with the test in `paired`). Between decisions `takes_canary`
chooses the release of each conversation. Nothing here does I/O or reads a clock: `gateway.rollout` brings the time,
counts requests and keeps the state in a store.
"""

from gateway.rollout.policy import controller
from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.counts import Arm, Counts, Kind, Mirrored, Number, Outcome, Sign
from gateway.rollout.policy.evidence import Evidence, filter_bits
from gateway.rollout.policy.guard import Finding, Metric, Verdict
from gateway.rollout.policy.histograms import bucket_of, quantile_s
from gateway.rollout.policy.means import mean_length, mean_logprob
from gateway.rollout.policy.paired import drop_interval
from gateway.rollout.policy.plan import Guard, Plan, read_plan, with_releases
from gateway.rollout.policy.probing import (
    PairCounter,
    PairedCount,
    ProbeVerdict,
    Probing,
    first_beyond,
    is_open,
    judge_probes,
)
from gateway.rollout.policy.state import Change, Phase, State

__all__ = [
    "Arm",
    "Change",
    "Counts",
    "Evidence",
    "Finding",
    "Guard",
    "Kind",
    "Metric",
    "Mirrored",
    "Number",
    "Outcome",
    "PairCounter",
    "PairedCount",
    "Phase",
    "Plan",
    "ProbeVerdict",
    "Probing",
    "Sign",
    "State",
    "Verdict",
    "bucket_of",
    "controller",
    "drop_interval",
    "filter_bits",
    "first_beyond",
    "is_open",
    "judge_probes",
    "mean_length",
    "mean_logprob",
    "quantile_s",
    "read_plan",
    "takes_canary",
    "with_releases",
]
