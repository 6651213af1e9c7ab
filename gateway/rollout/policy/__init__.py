"""Pure rollout decisions: no I/O, no asyncio, no gRPC."""

from gateway.rollout.policy import controller
from gateway.rollout.policy.choice import takes_canary
from gateway.rollout.policy.controller import begin, preview, start, tick
from gateway.rollout.policy.counts import (
    Arm,
    Counts,
    Kind,
    Outcome,
    bucket_of,
    counts_of,
    histograms,
    median_s,
    merged,
    number,
    seconds_of,
)
from gateway.rollout.policy.guard import Finding
from gateway.rollout.policy.plan import Guard, Plan, read_plan
from gateway.rollout.policy.significance import p_above
from gateway.rollout.policy.state import Change, Phase, State

__all__ = [
    "Arm",
    "Change",
    "Counts",
    "Finding",
    "Guard",
    "Kind",
    "Outcome",
    "Phase",
    "Plan",
    "State",
    "begin",
    "bucket_of",
    "controller",
    "counts_of",
    "histograms",
    "median_s",
    "merged",
    "number",
    "p_above",
    "preview",
    "read_plan",
    "seconds_of",
    "start",
    "takes_canary",
    "tick",
]
