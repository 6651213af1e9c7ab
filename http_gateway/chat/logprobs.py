"""Log-probabilities as JSON."""

from collections.abc import Iterable
from typing import Any

from tandem.v1 import sampling_pb2

_IMPOSSIBLE = -9999.0  # OpenAI's number for a token without probability: JSON has no infinity


def logprobs(positions: Iterable[sampling_pb2.PositionLogprobs]) -> dict[str, Any]:
    """Return the log-probabilities of some tokens."""
    content = [
        {**_token(position.chosen), "top_logprobs": [_token(one) for one in position.top]} for position in positions
    ]
    return {"content": content, "refusal": None}


def _token(entry: sampling_pb2.TokenLogprob) -> dict[str, Any]:
    return {
        "token": entry.token.decode(errors="replace"),
        "logprob": max(_IMPOSSIBLE, entry.logprob),
        "bytes": list(entry.token),
    }
