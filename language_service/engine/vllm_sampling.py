"""Translate sampling options for vLLM.

An option that vLLM cannot follow is refused by name, never changed in silence.
"""

import json
from collections.abc import Collection
from typing import Any

from chassis.errors import InvalidArgument
from language_service.sampling import Logprobs, SamplingOptions

MAX_TEMPERATURE = 2.0
MIN_TEMPERATURE = 0.01  # below it, vLLM would take this one

_CONSTRAINTS = {"json_schema": "json", "regex": "regex", "choices": "choice", "grammar": "grammar"}


def check_options(options: SamplingOptions) -> None:
    """Check that vLLM can follow these options.

    Raises:
        InvalidArgument: reason 'NOT_SUPPORTED', with the field.
    """
    if options.temperature > MAX_TEMPERATURE:
        raise _not_supported("temperature", f"above {MAX_TEMPERATURE:g}")
    if 0 < options.temperature < MIN_TEMPERATURE:
        raise _not_supported("temperature", f"above 0 and below {MIN_TEMPERATURE:g}")
    if options.ignore_eos and options.constraint is not None:
        raise _not_supported("ignore_eos", "together with a constraint")


def sampling_arguments(
    options: SamplingOptions, *, max_tokens: int, ends: Collection[int], vocab_size: int
) -> dict[str, Any]:
    """Return the arguments of vLLM's `SamplingParams`.

    Those of the constraint are under 'structured_outputs'.

    Args:
        options: that `check_options` accepts.
        max_tokens: of the answer.
        ends: token ids that end it.
        vocab_size: of the model.
    """
    arguments: dict[str, Any] = {
        "temperature": options.temperature,
        "top_k": min(options.top_k, vocab_size),
        "top_p": options.top_p,
        "min_p": options.min_p,
        "repetition_penalty": options.repetition_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "logit_bias": dict(options.logit_bias) or None,
        "seed": options.seed,
        "stop_token_ids": sorted(ends),
        "ignore_eos": options.ignore_eos,
        "max_tokens": max_tokens,
        "min_tokens": options.min_tokens,
        "logprobs": options.num_logprobs,
        "detokenize": False,
    }
    if options.constraint is not None:
        kind, text = options.constraint.kind, options.constraint.text
        value = json.loads(text) if kind == "choices" else text
        arguments["structured_outputs"] = {_CONSTRAINTS[kind]: value}
    return arguments


def read_logprobs(chosen: int, ranked: Collection[tuple[int, float, int]], count: int) -> Logprobs:
    """Return the log-probabilities of one position.

    Args:
        chosen: the chosen token.
        ranked: token, log-probability and rank from 1, of the chosen and the most likely tokens.
        count: how many of the most likely ones to report.
    """
    top = sorted(((rank, token, logprob) for token, logprob, rank in ranked if rank <= count), key=lambda one: one[0])
    return Logprobs(
        chosen=next(logprob for token, logprob, _ in ranked if token == chosen),
        top=[(token, logprob) for _, token, logprob in top[:count]],
    )


def _not_supported(name: str, problem: str) -> InvalidArgument:
    return InvalidArgument(
        f"sampling.{name} {problem} is not possible with the engine of this model, vLLM.",
        reason="NOT_SUPPORTED",
        field=f"sampling.{name}",
    )
