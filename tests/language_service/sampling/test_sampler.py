"""Check each sampling option by its definition, on small distributions."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chassis.errors import InvalidArgument
from language_service.sampling.options import SamplingOptions, read_options
from language_service.sampling.sampler import choose
from language_service.sampling.state import SamplingState
from tandem.v1 import sampling_pb2
from tests.language_service.operation_spy import OperationSpy

EOS = 2
PROBS = [0.4, 0.3, 0.15, 0.1, 0.05]


def make_state(**options: Any) -> SamplingState:
    return SamplingState(SamplingOptions(**options), eos_token_ids=[EOS])


def logits_of(probs: list[float], rows: int = 1) -> torch.Tensor:
    return torch.tensor([probs] * rows).log()


def tokens(logits_BV: torch.Tensor, states: list[SamplingState]) -> list[int]:
    return [choice.token_id for choice in choose(logits_BV, states) if choice is not None]


def draws(count: int, **options: Any) -> Counter[int]:
    """Count the first tokens of `count` answers with different seeds."""
    states = [make_state(seed=seed, **{"temperature": 1.0, **options}) for seed in range(count)]
    return Counter(tokens(logits_of(PROBS, count), states))


def test_greedy_takes_the_largest_logit() -> None:
    assert tokens(logits_of(PROBS), [make_state()]) == [0]


def test_draws_follow_the_distribution() -> None:
    """Within 4.5 standard deviations of each expected count."""
    counts = draws(4000)
    for token, prob in enumerate(PROBS):
        assert abs(counts[token] - 4000 * prob) < 4.5 * math.sqrt(4000 * prob * (1 - prob))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 99}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.39}, {0}),
        ({"top_p": 0.41}, {0, 1}),  # the token that reaches p stays
        ({"top_p": 0.84}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"top_p": 1.0}, {0, 1, 2, 3, 4}),
        ({"min_p": 0.3}, {0, 1, 2}),  # times the largest: 0.12
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.6}, {0, 1}),  # p applies after top-k: 0.4 / 0.85 is below 0.6
        ({"temperature": 1e-30}, {0}),
    ],
)
def test_cut_offs_keep_the_defined_tokens(options: dict[str, Any], kept: set[int]) -> None:
    assert set(draws(300, **options)) == kept


def test_temperature_flattens_the_distribution() -> None:
    """At temperature 2, probabilities become their normalised square roots."""
    roots = [math.sqrt(prob) for prob in PROBS]
    counts = draws(3000, temperature=2.0)
    for token, root in enumerate(roots):
        prob = root / sum(roots)
        assert abs(counts[token] - 3000 * prob) < 4.5 * math.sqrt(3000 * prob * (1 - prob))


def test_a_seed_gives_the_same_tokens_in_any_batch() -> None:
    logits_LV = torch.randn(30, 50)

    def answer(others: list[dict[str, Any]], row: int) -> list[int]:
        states = [make_state(**options) for options in others]
        states.insert(row, make_state(temperature=0.9, seed=11, top_p=0.9, frequency_penalty=0.5))
        generator = torch.Generator().manual_seed(len(others))
        chosen = []
        for logits_V in logits_LV:
            logits_BV = torch.randn(len(states), 50, generator=generator)
            logits_BV[row] = logits_V
            chosen.append(tokens(logits_BV, states)[row])
        return chosen

    alone = answer([], 0)
    assert answer([{"temperature": 1.3, "top_k": 7}, {}, {"temperature": 0.5, "seed": 11}], 2) == alone
    assert len(set(alone)) > 5


def test_ties_do_not_depend_on_the_batch() -> None:
    """Their order must not depend on another row's top_k."""
    logits_V = torch.randint(0, 3, (300,), generator=torch.Generator().manual_seed(0)).float()
    for top_k in (1, 3, 50, 0):
        for seed in range(20):
            state, alone = (make_state(temperature=1.0, top_k=top_k, seed=seed) for _ in range(2))
            in_batch = tokens(logits_V.repeat(3, 1), [make_state(temperature=1.0), state, make_state(top_k=2)])
            assert in_batch[1:2] == tokens(logits_V[None], [alone])


def test_without_a_seed_answers_differ() -> None:
    state, other = (make_state(temperature=1.0) for _ in range(2))
    logits_BV = torch.zeros(2, 50)
    first, second = zip(*(tokens(logits_BV, [state, other]) for _ in range(20)), strict=True)
    assert first != second


def test_logit_bias_moves_single_tokens() -> None:
    assert tokens(logits_of(PROBS), [make_state(logit_bias={4: 100.0})]) == [4]
    assert tokens(logits_of(PROBS), [make_state(logit_bias={0: -100.0})]) == [1]


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    logits_BV = torch.tensor([[2.0, 1.5, -1.0]])
    state = make_state(repetition_penalty=2.0)
    state.note_prompt([0])
    assert tokens(logits_BV, [state]) == [1]  # 2 / 2 < 1.5
    assert tokens(logits_BV, [state]) == [0]  # now 1 against 0.75
    negative = make_state(repetition_penalty=2.0)
    negative.note_prompt([0])
    assert tokens(torch.tensor([[-1.0, -1.5]]), [negative]) == [1]  # multiplied where negative: -2


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    logits_BV = torch.tensor([[1.0, 0.9, 0.0]])
    presence = make_state(presence_penalty=0.5)
    presence.note_prompt([0])
    assert [tokens(logits_BV, [presence])[0] for _ in range(4)] == [
        0,
        1,
        0,
        0,
    ]  # counted once, not per occurrence
    frequency = make_state(frequency_penalty=0.3)
    frequency.note_prompt([0])
    assert [tokens(logits_BV, [frequency])[0] for _ in range(6)] == [0, 1, 0, 1, 0, 1]


def test_penalties_and_biases_affect_only_their_row() -> None:
    """A batch joins them. Some rows have none."""
    rows: list[dict[str, Any]] = [
        {"presence_penalty": 2.0},
        {},
        {"repetition_penalty": 3.0, "logit_bias": {4: 0.5, 1: -0.25}},
        {"frequency_penalty": 0.5, "presence_penalty": 0.25, "logit_bias": {0: 1.0}},
        {"repetition_penalty": 0.5},
    ]
    prompts = [[], [1], [4, 1, 4], [2], [0, 3]]
    logits_LBV = torch.randn(6, len(rows), 5)

    def make(index: int) -> SamplingState:
        state = make_state(**rows[index])
        state.note_prompt(prompts[index])
        return state

    together = [make(index) for index in range(len(rows))]
    answers = list(zip(*(tokens(logits_BV, together) for logits_BV in logits_LBV), strict=True))
    for index, answer in enumerate(answers):
        state = make(index)
        assert [tokens(logits_BV[index : index + 1], [state])[0] for logits_BV in logits_LBV] == list(answer)


def test_the_number_of_operations_does_not_grow_with_the_rows() -> None:
    """An operation costs more than all Python code per row."""
    options: dict[str, Any] = {
        "temperature": 0.8,
        "top_k": 4,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "logit_bias": {1: 0.5, 3: 0.1},
        "min_tokens": 3,
        "num_logprobs": 2,
    }

    def num_operations(num_rows: int) -> int:
        states = [make_state(**options) for _ in range(num_rows)]
        choose(torch.randn(num_rows, 5), states)
        calls: list[Any] = []
        with OperationSpy(lambda *call: calls.append(call)):
            choose(torch.randn(num_rows, 5), states)
        return len(calls)

    assert num_operations(9) == num_operations(2) > 0


def test_min_tokens_forbids_every_end_token() -> None:
    logits_BV = torch.tensor([[0.0, 1.0, 9.0, 8.0]])
    state = make_state(min_tokens=2, stop_token_ids=frozenset([3]))
    assert [tokens(logits_BV, [state])[0] for _ in range(3)] == [1, 1, EOS]


def test_logprobs_are_of_the_plain_distribution() -> None:
    """Before temperature, penalties and cut-offs.

    Only rows that request them get any.
    """
    states = [
        make_state(num_logprobs=2, temperature=5.0, logit_bias={4: 100.0}),
        make_state(),
        make_state(num_logprobs=0),
    ]
    first, second, third = choose(logits_of(PROBS, 3), states)
    assert first is not None
    assert first.logprobs is not None
    assert first.token_id == 4
    assert first.logprobs.chosen == pytest.approx(math.log(0.05), abs=1e-5)
    assert [token for token, _ in first.logprobs.top] == [0, 1]
    assert [logprob for _, logprob in first.logprobs.top] == pytest.approx([math.log(0.4), math.log(0.3)], abs=1e-5)
    assert second is not None
    assert second.logprobs is None
    assert third is not None
    assert third.logprobs is not None
    assert third.logprobs.top == []
    assert third.logprobs.chosen == pytest.approx(math.log(0.4), abs=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_is_not_finite_gets_no_token_and_changes_no_other(bad: float, temperature: float) -> None:
    logits_BV = logits_of(PROBS, 3)
    logits_BV[1, 3] = bad
    states = [make_state(temperature=temperature, top_k=1, num_logprobs=1) for _ in range(3)]
    first, second, third = choose(logits_BV, states)
    assert second is None
    assert first == third
    assert first is not None
    assert first.token_id == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logit_made_infinite_by_an_option_wins_and_changes_no_other_row(temperature: float) -> None:
    """Dividing by such a small penalty overflows."""
    states = [make_state(temperature=temperature, repetition_penalty=1e-45), make_state()]
    states[0].note_prompt([3])
    assert tokens(torch.tensor([[1.0, 9.0, 3.0, 2.0]] * 2), states) == [3, 1]


@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=40),
    temperature=st.floats(1e-6, 100),
    top_k=st.integers(0, 50),
    top_p=st.floats(1e-6, 1),
    min_p=st.floats(0, 1),
    seed=st.integers(0, 2**64 - 1),
)
def test_a_draw_is_always_within_the_cut_offs(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
    token = tokens(torch.tensor([logits]), [make_state(**options)])[0]
    rank = sum(other > logits[token] for other in logits)
    assert rank < (top_k or len(logits))
    scaled = [(logit - max(logits)) / temperature for logit in logits]
    assert scaled[token] >= math.log(min_p) - 1e-4 if min_p > 0 else True


BAD: dict[str, list[Any]] = {
    "temperature": [-0.1, 101.0, float("nan"), float("inf")],
    "top_p": [0.0, -1.0, 1.1, float("nan")],
    "min_p": [-0.1, 1.1, float("nan")],
    "repetition_penalty": [0.0, -1.0, float("inf"), float("nan")],
    "presence_penalty": [-2.1, 2.1, float("nan")],
    "frequency_penalty": [-2.1, 2.1, float("nan")],
    "logit_bias": [{2000: 1.0}, {1: 101.0}, {1: float("nan")}, dict.fromkeys(range(1025), 1.0)],
    "stop_token_ids": [[2000], list(range(65))],
    "num_logprobs": [21],
    "min_tokens": [11],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in BAD.items() for value in values])
def test_a_bad_option_is_refused_with_its_field(field: str, value: Any) -> None:
    message = sampling_pb2.SamplingOptions(**{"max_tokens": 10, field: value})
    with pytest.raises(InvalidArgument) as caught:
        read_options(message, vocab_size=2000)
    assert (caught.value.field, caught.value.reason) == (f"sampling.{field}", "BAD_SAMPLING")


def test_missing_options_have_the_defaults() -> None:
    assert read_options(sampling_pb2.SamplingOptions(), vocab_size=5) == SamplingOptions()
