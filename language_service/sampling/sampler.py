"""Chooses the next token of every sequence of a batch."""

import math
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from language_service.kernels import largest
from language_service.sampling.grammar import Grammar, allowed_tokens
from language_service.sampling.options import SamplingOptions

# B rows, V vocabulary, R rows with some option, S places in them, N tokens kept for a draw, K logprobs

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


class SeenTokens:
    """The different tokens of a prompt and its answer, and how often the answer had each."""

    def __init__(self) -> None:
        self.token_ids = array("q")
        self.counts = array("f")
        self._places: dict[int, int] = {}

    def add_prompt(self, token_ids: Sequence[int]) -> None:
        """Note text of the prompt."""
        for token_id in token_ids:
            self._place(token_id)

    def add_answer(self, token_id: int) -> None:
        """Note a token of the answer."""
        self.counts[self._place(token_id)] += 1

    def _place(self, token_id: int) -> int:
        place = self._places.setdefault(token_id, len(self.token_ids))
        if place == len(self.token_ids):
            self.token_ids.append(token_id)
            self.counts.append(0)
        return place


class SamplingState:
    """What choosing the tokens of one answer needs to remember: plain data, of which a step's tensors are made."""

    def __init__(self, options: SamplingOptions, *, eos_token_ids: Sequence[int], grammar: Grammar | None = None):
        self.options = options
        self.grammar = grammar
        self.num_chosen = 0
        self.ends = array("q", sorted({*eos_token_ids, *options.stop_token_ids}))
        self.has_ended = False  # whether the last token chosen ends the answer
        # Each answer has a stream of its own and takes one number from it a token, so its text does not depend on
        # what else runs. Python's generator, since a draw needs a single number and torch's costs more.
        self.random = random.Random(options.seed)
        self.biased = array("q", options.logit_bias.keys())
        self.biases = array("f", options.logit_bias.values())
        self.seen = SeenTokens()  # stays empty where nothing is penalised

    def is_end(self, token_id: int) -> bool:
        """Whether this token says that the answer is over, and is no part of it."""
        return token_id in self.options.stop_token_ids or (token_id in self.ends and not self.options.ignore_eos)

    def note_prompt(self, token_ids: Sequence[int]) -> None:
        """Remember the text of the prompt, which the repetition penalty counts as seen."""
        if self.options.penalises:
            self.seen.add_prompt(token_ids)

    def note_choice(self, token_id: int) -> None:
        """Remember a token of the answer."""
        self.num_chosen += 1
        self.has_ended = self.is_end(token_id)
        if self.grammar is not None:
            self.grammar.accept(token_id)
            self.has_ended |= self.grammar.is_complete
        if self.options.penalises:
            self.seen.add_answer(token_id)


def choose(logits_BV: Tensor, states: Sequence[SamplingState]) -> list[Choice | None]:
    """Return the next token of each row, None for a row whose logits are not numbers.

    Tensors are worked on for all rows at once, and only for the options some row uses. In order: logit bias,
    repetition, frequency and presence penalties, min_tokens, grammar, temperature, top-k, top-p of what is left, min-p.
    """
    raw_BV = logits_BV.float()
    largest_B, tokens_B = largest(raw_BV)
    finite = drawable = largest_B.isfinite().tolist()
    adjusted_BV = _adjust(raw_BV, states)
    if adjusted_BV is not raw_BV:
        largest_B, tokens_B = largest(adjusted_BV)
        # A logit that a penalty made infinite wins; where nothing is left, whatever is taken fails its grammar.
        drawable = largest_B.isfinite().tolist()
    drawing = [row for row in _rows(states, lambda options: options.temperature > 0) if drawable[row]]
    # Apart by top-k, so that in which order equal logits come depends on nobody's options but the row's own.
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
    biased = _rows(states, lambda options: len(options.logit_bias) > 0)
    penalised = _rows(states, lambda options: options.penalises)
    unended = [row for row, state in enumerate(states) if state.num_chosen < state.options.min_tokens]
    grammars = {row: state.grammar for row, state in enumerate(states) if state.grammar is not None}
    if not (biased or penalised or unended or grammars):
        return logits_BV
    logits_BV = logits_BV.clone()
    if biased:
        places = _places(biased, [states[row].biased for row in biased], logits_BV.device)
        biases_S = np.concatenate([np.asarray(states[row].biases) for row in biased])
        logits_BV[places] += torch.from_numpy(biases_S).to(logits_BV.device)
    if penalised:
        _penalise(logits_BV, penalised, states)
    if unended:
        logits_BV[_places(unended, [states[row].ends for row in unended], logits_BV.device)] = _NEVER
    if grammars:
        allowed_RV = torch.from_numpy(allowed_tokens(list(grammars.values()), logits_BV.shape[-1]))
        constrained = list(grammars)
        logits_BV[constrained] = logits_BV[constrained].masked_fill(~allowed_RV.to(logits_BV.device), _NEVER)
    return logits_BV


def _places(rows: Sequence[int], tokens: Sequence["array[int]"], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return row and token, [S] each, of everything in `tokens`, which holds an array for each of `rows`."""
    rows_S = np.repeat(np.asarray(rows), [len(one) for one in tokens])
    tokens_S = np.concatenate([np.asarray(one) for one in tokens])
    places_2S = torch.from_numpy(np.stack([rows_S, tokens_S])).to(device)
    return places_2S[0], places_2S[1]


def _penalise(logits_BV: Tensor, rows: Sequence[int], states: Sequence[SamplingState]) -> None:
    """Change the logits of tokens seen before, of which a row has few beside its vocabulary."""
    seen, options = [states[row].seen for row in rows], [states[row].options for row in rows]
    penalties_R3 = np.array([(one.repetition_penalty, one.frequency_penalty, one.presence_penalty) for one in options])
    penalties_S3 = np.repeat(penalties_R3, [len(one.token_ids) for one in seen], axis=0)
    columns_S4 = np.column_stack([np.concatenate([np.asarray(one.counts) for one in seen]), penalties_S3])
    columns_4S = torch.from_numpy(columns_S4.T.astype(np.float32)).to(logits_BV.device)
    counts_S, repetition_S, frequency_S, presence_S = columns_4S
    places = _places(rows, [one.token_ids for one in seen], logits_BV.device)
    found_S = logits_BV[places]
    found_S = torch.where(found_S > 0, found_S / repetition_S, found_S * repetition_S)
    logits_BV[places] = found_S - counts_S * frequency_S - (counts_S > 0) * presence_S


def _draw(logits_RV: Tensor, states: Sequence[SamplingState], top_k: int) -> Tensor:
    """Return one token a row, drawn from what temperature and cuts leave of the `top_k` likeliest, [R]."""
    rows = range(len(states))
    logits_RN, tokens_RN = logits_RV.topk(min(top_k, logits_RV.shape[-1]), dim=-1)  # sorted, so the cuts are prefixes
    # The largest first becomes 0, so that dividing by a tiny temperature overflows to -inf and never to NaN.
    scaled_RN = (logits_RN - logits_RN[:, :1]).double() / _column(rows, states, "temperature", logits_RN).double()
    probs_RN = scaled_RN.softmax(dim=-1)
    # A token stays while those before it do not reach p yet, so the one that reaches it stays too. Rounding may carry
    # the sum past 1, so a p of 1 must not be compared at all.
    top_ps = [state.options.top_p if state.options.top_p < 1 else math.inf for state in states]
    kept_RN = probs_RN.cumsum(dim=-1) - probs_RN < probs_RN.new_tensor(top_ps)[:, None]
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
