"""Estimate when a rejected client should retry."""

SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.1, 30.0


def time_to_clear_s(num_rounds: float, seconds_per_round: float) -> float:
    """Return the expected wait of a new request, seconds.

    Args:
        num_rounds: rounds of work ahead of it: batches, or requests divided by the concurrency limit.
        seconds_per_round: recent duration of one round.
    """
    return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, num_rounds * seconds_per_round))
