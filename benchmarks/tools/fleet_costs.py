"""Replicas and money that a fleet needs, by stage."""

import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

ZONES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Prices of an hour, and the planned use of processes.

    The defaults are examples of the order of magnitude. Set your own in a TOML file with these names.
    """

    accelerator_h: float = 2.50  # of a language replica, any currency
    vision_h: float = 0.80  # of a vision replica on a smaller accelerator
    vision_slowdown: float = 8.0  # of that accelerator, against the language replica's
    core_h: float = 0.04  # of a gateway, with 2 GiB of memory
    redis_gib_h: float = 0.02
    full: float = 0.7  # share of the capacity of gateways and vision replicas that is planned for


def read_prices(path: Path | None) -> Prices:
    """Read prices from a TOML file, None for the examples."""
    return Prices(**tomllib.loads(path.read_text())) if path is not None else Prices()


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Demand of a peak on each stage."""

    requests_per_s: float
    tokens_per_request: float
    misses: float  # share of requests whose image is encoded
    requests_per_replica: float  # of a language replica, per second
    encode_s: float  # of an image, on the accelerator of a language replica
    gateway_token_s: float  # processor time of the gateway for one token
    redis_gib: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """Processes by stage."""

    language: int
    vision: int
    gateway: int  # cores
    redis_gib: float

    def cost_h(self, prices: Prices) -> float:
        """Return the price of an hour."""
        return (
            self.language * prices.accelerator_h
            + self.vision * prices.vision_h
            + self.gateway * prices.core_h
            + self.redis_gib * prices.redis_gib_h
        )


def fleet_for(demand: Demand, prices: Prices, *, colocated: bool = False) -> Fleet:
    """Return the fleet for a peak without one zone.

    Args:
        demand: of the peak.
        prices: and how full processes may be.
        colocated: the language replicas encode images, too.
    """
    spare = ZONES / (ZONES - 1)
    encoding = demand.requests_per_s * demand.misses * demand.encode_s / prices.full  # accelerators busy with it
    language = demand.requests_per_s / demand.requests_per_replica + (encoding if colocated else 0.0)
    tokens = demand.requests_per_s * demand.tokens_per_request * demand.gateway_token_s / prices.full
    return Fleet(
        language=_by_zones(language * spare),
        vision=0 if colocated else _by_zones(encoding * prices.vision_slowdown * spare),
        gateway=_by_zones(tokens * spare),
        redis_gib=demand.redis_gib,
    )


def per_million(fleet: Fleet, prices: Prices, requests_per_s: float) -> float:
    """Return the price of a million requests."""
    return fleet.cost_h(prices) / (3600 * requests_per_s) * 1e6


def break_even(demand: Demand, prices: Prices) -> float:
    """Return the rate from which a vision stage pays.

    Below it, the least stage, one replica in each zone, costs more than the part of language replicas that it saves.
    Fractions of replicas count, since whole numbers would decide by chance. Infinity if an image costs more there.

    Returns:
        Requests per second.
    """
    if prices.vision_slowdown * prices.vision_h > prices.accelerator_h:
        return math.inf
    spare = ZONES / (ZONES - 1)
    accelerators = demand.misses * demand.encode_s / prices.full * spare  # busy with one request per second
    return ZONES * prices.vision_h / (accelerators * prices.accelerator_h)


def _by_zones(replicas: float) -> int:
    """Return whole replicas, equally many in each zone."""
    return ZONES * math.ceil(replicas / ZONES - 1e-9)
