"""Say when a refused client may come again."""

SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.1, 30.0


def time_to_clear_s(num_rounds: float, seconds_per_round: float) -> float:
    """Return about how long the queue ahead of a new request takes, seconds.

    Args:
        num_rounds: rounds of work ahead of it: batches, or requests divided by those that run at once.
        seconds_per_round: how long one took lately.
    """
    return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, num_rounds * seconds_per_round))
