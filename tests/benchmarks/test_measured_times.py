"""Service times are those that were measured, divided by an accelerator's factors."""

import json
import statistics

import numpy as np
import pytest

from benchmarks.tools.measured_times import full_size_times
from benchmarks.tools.report import RESULTS


def random() -> np.random.Generator:
    return np.random.default_rng(0)


def test_without_factors_a_step_takes_as_long_as_measured() -> None:
    full_size = json.loads((RESULTS / "full_size.json").read_text())["details"]
    step_s = statistics.median(full_size["between_tokens_s"])
    assert full_size_times(1, 1, random()).step_s(1) == pytest.approx(step_s)


def test_steps_grow_with_their_batch_up_to_the_largest_measured() -> None:
    times = full_size_times(100, 1000, random())
    steps = [times.step_s(size) for size in range(1, 65)]
    assert steps == sorted(steps)
    assert times.step_s(1000) == steps[-1]


def test_bandwidth_divides_the_step_of_one_and_compute_all_the_rest() -> None:
    plain, fast = full_size_times(1, 1, random()), full_size_times(10, 100, random())
    assert fast.step_s(1) == pytest.approx(plain.step_s(1) / 10)
    assert fast.step_s(32) - fast.step_s(1) == pytest.approx((plain.step_s(32) - plain.step_s(1)) / 100)
    assert fast.prefill_s(16) == pytest.approx(plain.prefill_s(16) / 100)
    assert fast.encode_s() == pytest.approx(plain.encode_s() / 100)  # the same draw
