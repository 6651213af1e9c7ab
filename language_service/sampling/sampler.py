"""Choose the next token of every sequence in a batch."""

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from language_service.kernels import largest
from language_service.sampling.grammar import allowed_tokens
from language_service.sampling.options import SamplingOptions
from language_service.sampling.state import SamplingState

# B rows, V vocabulary, R rows with some option, S entries in them, N tokens that a draw considers, K logprobs

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities at one position, before temperature, penalties and cut-offs."""

    chosen: float
    top: list[tuple[int, float]]  # token and logprob, largest first


@dataclass(frozen=True, slots=True)
class Choice:
    """The token chosen for one sequence."""

    token_id: int
    logprobs: Logprobs | None  # None if not requested


def choose(logits_BV: Tensor, states: Sequence[SamplingState]) -> list[Choice | None]:
    """Return the next token of each row.

    It is None for a row with logits that are not finite.

    The options apply in this order: logit bias, penalties (repetition, frequency, presence), min_tokens, grammar,
    temperature, top-k, top-p of the remaining tokens, min-p. Tensor operations take all rows at once. Options that no
    row uses cost nothing.
    """
    raw_BV = logits_BV.float()
    largest_B, tokens_B = largest(raw_BV)
    finite = drawable = largest_B.isfinite().tolist()
    adjusted_BV = _adjust(raw_BV, states)
    if adjusted_BV is not raw_BV:
        largest_B, tokens_B = largest(adjusted_BV)
        # A penalty can make a logit infinite, which then wins without a draw. If a grammar and the other options leave
        # no token, the one taken here violates the grammar, and the request fails.
        drawable = largest_B.isfinite().tolist()
    drawing = [row for row in _rows(states, lambda options: options.temperature > 0) if drawable[row]]
    # Group rows by top_k, so that ties depend only on the row's own options.
    for top_k in {states[row].options.top_k for row in drawing}:
        rows = [row for row in drawing if states[row].options.top_k == top_k]
        tokens_B[rows] = _draw(adjusted_BV[rows], [states[row] for row in rows], top_k or raw_BV.shape[-1])
    tokens = tokens_B.tolist()
    logprobs = _logprobs(raw_BV, tokens, states)
    choices: list[Choice | None] = []
    for row, state in enumerate(states):
        if finite[row]:
            state.note_choice(tokens[row])
        choices.append(Choice(tokens[row], logprobs.get(row)) if finite[row] else None)
    return choices


def choose_with_drafts(
    logits_BV: Tensor, states: Sequence[SamplingState], drafts: Sequence[Sequence[int]]
) -> list[list[Choice | None]]:
    """Return the next tokens of each answer.

    That is one token, and one more after each accepted draft. It is none if the grammar's mask is not known yet.

    Each token is chosen by the same rules, random stream and order as without drafts. So drafts change only the number
    of steps. No token is chosen after the end of an answer. A token without an alternative is taken without its logits.

    Args:
        logits_BV: per answer, one row before each of its drafts, then one row after the last of them.
        states: per answer.
        drafts: per answer.
    """
    first_rows = list(accumulate((1 + len(tokens) for tokens in drafts), initial=0))
    chosen: list[list[Choice | None]] = [[] for _ in states]
    active = [index for index, state in enumerate(states) if state.is_ready]
    offset = 0
    while active:
        forced = {index: token for index in active if (token := states[index].take_forced()) is not None}
        for index, token in forced.items():
            chosen[index].append(Choice(token, None))
        undecided = [index for index in active if index not in forced]
        rows = [first_rows[index] + offset for index in undecided]
        rows_RV = logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]
        choices = choose(rows_RV, [states[index] for index in undecided]) if undecided else []
        for index, choice in zip(undecided, choices, strict=True):
            chosen[index].append(choice)
        active = [
            index
            for index in active
            if _accepts(chosen[index], drafts[index]) and not states[index].has_ended and states[index].is_ready
        ]
        offset += 1
    return chosen


def _accepts(chosen: Sequence[Choice | None], drafts: Sequence[int]) -> bool:
    """Return whether the token chosen last equals its draft."""
    last = chosen[-1]
    return last is not None and len(chosen) <= len(drafts) and drafts[len(chosen) - 1] == last.token_id


def _rows(states: Sequence[SamplingState], applies: Callable[[SamplingOptions], bool]) -> list[int]:
    return [row for row, state in enumerate(states) if applies(state.options)]


def _column(rows: Sequence[int], states: Sequence[SamplingState], name: str, like: Tensor) -> Tensor:
    """Return one option of `rows` as a column [R, 1].

    It has the type and device of `like`.
    """
    return like.new_tensor([[getattr(states[row].options, name)] for row in rows])


def _adjust(logits_BV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Apply bias, penalties, min_tokens and grammar.

    Returns `logits_BV` itself if no row has any.
    """
    biased = _rows(states, lambda options: len(options.logit_bias) > 0)
    penalised = _rows(states, lambda options: options.penalises)
    unended = [row for row, state in enumerate(states) if state.num_chosen < state.options.min_tokens]
    grammars = {row: state.grammar for row, state in enumerate(states) if state.grammar is not None}
    if not (biased or penalised or unended or grammars):
        return logits_BV
    logits_BV = logits_BV.clone()
    if biased:
        entries = _entries(biased, [states[row].biased for row in biased], logits_BV.device)
        biases_S = np.concatenate([np.asarray(states[row].biases) for row in biased])
        logits_BV[entries] += torch.from_numpy(biases_S).to(logits_BV.device)
    if penalised:
        _penalise(logits_BV, penalised, states)
    if unended:
        logits_BV[_entries(unended, [states[row].ends for row in unended], logits_BV.device)] = _NEVER
    if grammars:
        allowed_RV = torch.from_numpy(allowed_tokens(list(grammars.values()), logits_BV.shape[-1]))
        constrained = list(grammars)
        logits_BV[constrained] = logits_BV[constrained].masked_fill(~allowed_RV.to(logits_BV.device), _NEVER)
    return logits_BV


def _entries(rows: Sequence[int], tokens: Sequence["array[int]"], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and token indices, both [S], of `tokens`.

    `tokens` has one array for each of `rows`.
    """
    rows_S = np.repeat(np.asarray(rows), [len(one) for one in tokens])
    tokens_S = np.concatenate([np.asarray(one) for one in tokens])
    entries_2S = torch.from_numpy(np.stack([rows_S, tokens_S])).to(device)
    return entries_2S[0], entries_2S[1]


def _penalise(logits_BV: Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> None:
    """Apply penalties to the tokens seen before, in place.

    These are few compared to the vocabulary.
    """
    seen, options = [states[row].seen for row in rows], [states[row].options for row in rows]
    penalties_R3 = np.array([(one.repetition_penalty, one.frequency_penalty, one.presence_penalty) for one in options])
    penalties_S3 = np.repeat(penalties_R3, [len(one.token_ids) for one in seen], axis=0)
    columns_S4 = np.column_stack([np.concatenate([np.asarray(one.counts) for one in seen]), penalties_S3])
    columns_4S = torch.from_numpy(columns_S4.T.astype(np.float32)).to(logits_BV.device)
    counts_S, repetition_S, frequency_S, presence_S = columns_4S
    entries = _entries(rows, [one.token_ids for one in seen], logits_BV.device)
    penalised_S = logits_BV[entries]
    penalised_S = torch.where(penalised_S > 0, penalised_S / repetition_S, penalised_S * repetition_S)
    logits_BV[entries] = penalised_S - counts_S * frequency_S - (counts_S > 0) * presence_S


def _draw(logits_RV: Tensor, states: Sequence[SamplingState], top_k: int) -> Tensor:
    """Draw one token per row, [R].

    Temperature and cut-offs apply to the `top_k` largest logits.
    """
    rows = range(len(states))
    logits_RN, tokens_RN = logits_RV.topk(min(top_k, logits_RV.shape[-1]), dim=-1)  # sorted, so cut-offs keep a prefix
    # Subtract the largest first. Then dividing by a tiny temperature can overflow to -inf, but never give NaN.
    scaled_RN = (logits_RN - logits_RN[:, :1]).double() / _column(rows, states, "temperature", logits_RN).double()
    probs_RN = scaled_RN.softmax(dim=-1)
    # Keep a token if those before it sum to less than p. So the token that reaches p is kept. Rounding can lift the sum
    # above 1, so a p of 1 must keep everything.
    top_ps = [state.options.top_p if state.options.top_p < 1 else math.inf for state in states]
    kept_RN = probs_RN.cumsum(dim=-1) - probs_RN < probs_RN.new_tensor(top_ps)[:, None]
    kept_RN &= probs_RN >= _column(rows, states, "min_p", probs_RN) * probs_RN[:, :1]
    cumulative_RN = (probs_RN * kept_RN).cumsum(dim=-1)
    # In float64, because the error of a float32 sum over a large vocabulary exceeds the rarest probabilities.
    marks_R1 = cumulative_RN.new_tensor([[state.random.random()] for state in states]) * cumulative_RN[:, -1:]
    picks_R1 = torch.searchsorted(cumulative_RN, marks_R1, right=True)
    picks_R1 = torch.minimum(picks_R1, kept_RN.sum(dim=-1, keepdim=True) - 1)
    return tokens_RN.gather(1, picks_R1)[:, 0]


def _logprobs(raw_BV: Tensor, tokens: Sequence[int], states: Sequence[SamplingState]) -> dict[int, Logprobs]:
    """Return the requested log-probabilities, by row."""
    rows = _rows(states, lambda options: options.num_logprobs is not None)
    if not rows:
        return {}
    logprobs_RV = raw_BV[rows].log_softmax(dim=-1)
    counts = [min(states[row].options.num_logprobs or 0, raw_BV.shape[-1]) for row in rows]
    chosen = logprobs_RV[range(len(rows)), [tokens[row] for row in rows]].tolist()
    values_RK, ids_RK = logprobs_RV.topk(max(counts), dim=-1)
    tops = zip(counts, ids_RK.tolist(), values_RK.tolist(), strict=True)
    return {
        row: Logprobs(one, list(zip(ids[:count], values[:count], strict=True)))
        for row, one, (count, ids, values) in zip(rows, chosen, tops, strict=True)
    }
