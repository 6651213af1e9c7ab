"""Chooses the next token of every sequence of a batch."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from language_service.grammar import Grammar, allowed_tokens
from language_service.kernels.native import largest
from language_service.options import SamplingOptions

# B rows, V vocabulary, R rows with some option, N tokens kept for a draw, K logprobs

_NEVER = float("-inf")


@dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities at one position, before temperature, penalties and cuts."""

    chosen: float
    top: list[tuple[int, float]]  # token and logprob, likeliest first


@dataclass(frozen=True, slots=True)
class Choice:
    """The token chosen for one sequence."""

    token_id: int
    logprobs: Logprobs | None  # where the options ask for them


class SamplingState:
    """What choosing the tokens of one answer needs to remember."""

    def __init__(
        self,
        options: SamplingOptions,
        *,
        vocab_size: int,
        eos_token_ids: Sequence[int],
        device: torch.device,
        grammar: Grammar | None = None,
    ):
        self.options = options
        self.grammar = grammar
        self.num_chosen = 0
        self.ends = sorted({*eos_token_ids, *options.stop_token_ids})
        self.has_ended = False  # whether the last token chosen ends the answer
        # Each answer has a stream of its own and takes one number from it a token, so its text does not depend on
        # what else runs. Python's generator, since a draw needs a single number and torch's costs more.
        self.random = random.Random(options.seed)
        self.counts_V = torch.zeros(vocab_size, device=device) if options.penalises else None
        self.seen_V = torch.zeros(vocab_size, dtype=torch.bool, device=device) if options.penalises else None

    def is_end(self, token_id: int) -> bool:
        """Whether this token says that the answer is over, and is no part of it."""
        return token_id in self.options.stop_token_ids or (token_id in self.ends and not self.options.ignore_eos)

    def note_prompt(self, token_ids: Sequence[int]) -> None:
        """Remember the text of the prompt, which the repetition penalty counts as seen."""
        if self.seen_V is not None:
            self.seen_V[torch.tensor(token_ids, device=self.seen_V.device)] = True

    def note_choice(self, token_id: int) -> None:
        """Remember a token of the answer."""
        self.num_chosen += 1
        self.has_ended = self.is_end(token_id)
        if self.grammar is not None:
            self.grammar.accept(token_id)
            self.has_ended |= self.grammar.is_complete
        if self.seen_V is not None and self.counts_V is not None:
            self.seen_V[token_id] = True
            self.counts_V[token_id] += 1


def choose(logits_BV: Tensor, states: Sequence[SamplingState]) -> list[Choice | None]:
    """Return the next token of each row, None for a row whose logits are not numbers.

    Work is done for all rows at once, and only for the options some row uses. In order: logit bias, repetition,
    frequency and presence penalties, min_tokens, grammar, temperature, top-k, top-p of what is left, min-p.
    """
    raw_BV = logits_BV.float()
    largest_B, tokens_B = largest(raw_BV)
    finite = largest_B.isfinite().tolist()
    adjusted_BV = _adjust(raw_BV, states)
    if adjusted_BV is not raw_BV:
        _, tokens_B = largest(adjusted_BV)
    drawing = _rows(states, lambda options: options.temperature > 0)
    drawing = [row for row in drawing if finite[row]]
    if drawing:
        tokens_B[drawing] = _draw(adjusted_BV[drawing], [states[row] for row in drawing])
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
    """Return the next tokens of each answer: one, and one more after each guess that turned out right.

    `logits_BV` holds a row for each answer, preceded by one for each of its guesses. Every token is chosen by the same
    rules, from the same stream, and in the same order as if it had been computed alone, so guesses change nothing but
    the number of steps. No token is chosen after the end of an answer.
    """
    firsts = list(accumulate((1 + len(guesses) for guesses in drafts), initial=0))
    chosen: list[list[Choice | None]] = [[] for _ in states]
    going = list(range(len(states)))
    place = 0
    while going:
        rows = [firsts[index] + place for index in going]
        rows_RV = logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]
        for index, choice in zip(going, choose(rows_RV, [states[index] for index in going]), strict=True):
            chosen[index].append(choice)
        going = [index for index in going if _is_right(drafts[index], chosen[index]) and not states[index].has_ended]
        place += 1
    return chosen


def _is_right(guesses: Sequence[int], chosen: Sequence[Choice | None]) -> bool:
    """Return whether the last token chosen is the one that was guessed for its place."""
    last = chosen[-1]
    return last is not None and len(chosen) <= len(guesses) and guesses[len(chosen) - 1] == last.token_id


def _rows(states: Sequence[SamplingState], asks: Callable[[SamplingOptions], bool]) -> list[int]:
    return [row for row, state in enumerate(states) if asks(state.options)]


def _column(rows: Sequence[int], states: Sequence[SamplingState], name: str, like: Tensor) -> Tensor:
    """Return one option of `rows` as a column of `like`'s type, [R, 1]."""
    return like.new_tensor([[getattr(states[row].options, name)] for row in rows])


def _adjust(logits_BV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Return the logits after bias, penalties, min_tokens and grammar; `logits_BV` itself where no row asks for any."""
    biased = [
        (row, token, bias) for row, state in enumerate(states) for token, bias in state.options.logit_bias.items()
    ]
    penalised = _rows(states, lambda options: options.penalises)
    unended = [
        (row, token)
        for row, state in enumerate(states)
        if state.num_chosen < state.options.min_tokens
        for token in state.ends
    ]
    grammars = {row: state.grammar for row, state in enumerate(states) if state.grammar is not None}
    if not (biased or penalised or unended or grammars):
        return logits_BV
    logits_BV = logits_BV.clone()
    if biased:
        rows, tokens, biases = zip(*biased, strict=True)
        logits_BV[rows, tokens] += logits_BV.new_tensor(biases)
    if penalised:
        logits_BV[penalised] = _penalise(logits_BV[penalised], penalised, states)
    if unended:
        rows, tokens = zip(*unended, strict=True)
        logits_BV[rows, tokens] = _NEVER
    if grammars:
        allowed_RV = torch.from_numpy(allowed_tokens(list(grammars.values()), logits_BV.shape[-1]))
        constrained = list(grammars)
        logits_BV[constrained] = logits_BV[constrained].masked_fill(~allowed_RV.to(logits_BV.device), _NEVER)
    return logits_BV


def _penalise(logits_RV: Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> Tensor:
    seen_RV = torch.stack([seen for row in rows if (seen := states[row].seen_V) is not None])
    counts_RV = torch.stack([counts for row in rows if (counts := states[row].counts_V) is not None])
    repetition_R1 = _column(rows, states, "repetition_penalty", logits_RV)
    repeated_RV = torch.where(logits_RV > 0, logits_RV / repetition_R1, logits_RV * repetition_R1)
    logits_RV = torch.where(seen_RV, repeated_RV, logits_RV)
    logits_RV = logits_RV - counts_RV * _column(rows, states, "frequency_penalty", logits_RV)
    return logits_RV - (counts_RV > 0) * _column(rows, states, "presence_penalty", logits_RV)


def _draw(logits_RV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Return one token a row, drawn from what temperature and cuts leave, [R]."""
    rows = range(len(states))
    vocab_size = logits_RV.shape[-1]
    top_ks = [min(state.options.top_k or vocab_size, vocab_size) for state in states]
    # Sorted, the cuts are prefixes. No row needs more than the largest k, which most often is far below V.
    logits_RN, tokens_RN = logits_RV.topk(max(top_ks), dim=-1)
    # The largest first becomes 0, so that dividing by a tiny temperature overflows to -inf and never to NaN.
    scaled_RN = (logits_RN - logits_RN[:, :1]).double() / _column(rows, states, "temperature", logits_RN).double()
    kept_RN = torch.arange(logits_RN.shape[-1], device=logits_RV.device) < scaled_RN.new_tensor(top_ks)[:, None]
    probs_RN = scaled_RN.masked_fill(~kept_RN, _NEVER).softmax(dim=-1)
    # A token stays while those before it do not reach p yet, so the one that reaches it stays too. Rounding may carry
    # the sum past 1, so a p of 1 must not be compared at all.
    top_ps = [state.options.top_p if state.options.top_p < 1 else math.inf for state in states]
    kept_RN &= probs_RN.cumsum(dim=-1) - probs_RN < probs_RN.new_tensor(top_ps)[:, None]
    kept_RN &= probs_RN >= _column(rows, states, "min_p", probs_RN) * probs_RN[:, :1]
    cumulative_RN = (probs_RN * kept_RN).cumsum(dim=-1)
    # In float64, since in float32 the sum over a large vocabulary is off by more than the rarest tokens weigh.
    marks_R1 = cumulative_RN.new_tensor([[state.random.random()] for state in states]) * cumulative_RN[:, -1:]
    picks_R1 = torch.searchsorted(cumulative_RN, marks_R1, right=True)
    picks_R1 = torch.minimum(picks_R1, kept_RN.sum(dim=-1, keepdim=True) - 1)
    return tokens_RN.gather(1, picks_R1)[:, 0]


def _logprobs(raw_BV: Tensor, tokens: Sequence[int], states: Sequence[SamplingState]) -> dict[int, Logprobs]:
    """Return the log-probabilities of the rows that ask for them, by row."""
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
