"""The size and price of a fleet follow from the demand."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.tools.fleet_costs import Demand, Fleet, Prices, break_even, fleet_for, per_million, read_prices

DEMAND = Demand(
    requests_per_s=6000,
    tokens_per_request=100,
    misses=0.1,
    requests_per_replica=50,
    encode_s=0.001,
    gateway_token_s=0.0005,
    redis_gib=10,
)
PRICES = Prices(accelerator_h=2, vision_h=1, vision_slowdown=2, core_h=0.1, redis_gib_h=0.01, full=0.5)


def test_two_of_three_zones_carry_the_peak() -> None:
    """120 replicas, images for 1.2 accelerators and 300 cores.

    Each is needed half as much again.
    """
    assert fleet_for(DEMAND, PRICES) == Fleet(language=180, vision=6, gateway=900, redis_gib=10)


def test_a_colocated_encoder_needs_language_replicas() -> None:
    colocated = fleet_for(DEMAND, PRICES, colocated=True)
    assert (colocated.language, colocated.vision) == (183, 0)


def test_the_price_counts_every_process() -> None:
    assert Fleet(language=1, vision=1, gateway=10, redis_gib=100).cost_h(PRICES) == pytest.approx(2 + 1 + 1 + 1)
    assert per_million(Fleet(1, 1, 10, 100), PRICES, 1000) == pytest.approx(5 / 3.6)


def test_at_the_break_even_three_vision_replicas_cost_as_much_as_they_save() -> None:
    rate = break_even(DEMAND, PRICES)
    saved = rate * DEMAND.misses * DEMAND.encode_s / PRICES.full * 1.5 * PRICES.accelerator_h
    assert saved == pytest.approx(3 * PRICES.vision_h)
    assert break_even(replace(DEMAND, misses=0.2), PRICES) == pytest.approx(rate / 2)


def test_a_slow_vision_accelerator_never_pays() -> None:
    assert break_even(DEMAND, replace(PRICES, vision_slowdown=3)) == math.inf


def test_prices_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text("accelerator_h = 4.5\n")
    assert read_prices(file) == replace(read_prices(None), accelerator_h=4.5)
    file.write_text("accelerator = 4.5\n")
    with pytest.raises(TypeError):
        read_prices(file)
