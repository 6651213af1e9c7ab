"""Measure how often hostile callers mislead the guard of a rollout.

They make 5 % of the requests, and fail on both releases, or only with routing keys that they know to get one of them.
`gateway.rollout.policy.Evidence` bounds the weight of the latter. One kind counts all of them, for comparison. Traffic
and decisions are those of `benchmarks.rollout_simulation`.
"""

from collections.abc import Sequence

from benchmarks.rollout_simulation import OPTIONS, roll_out
from benchmarks.tools.report import Report, parse_arguments
from benchmarks.tools.simulated_canaries import CANARIES


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, and publish the results."""
    options = parse_arguments("Measure how often hostile callers mislead the guard of a rollout.", arguments, **OPTIONS)
    kinds = [name for name, (behaviour, _) in CANARIES.items() if behaviour.attack is not None]
    roll_out(Report("rollout_attacks", "Rollouts under attack"), kinds, options)


if __name__ == "__main__":
    main()
