"""How the workers of a gateway divide its limits."""

from collections.abc import Callable
from pathlib import Path

import pytest

from chassis.api_keys import new_key
from chassis.errors import FailedPrecondition
from chassis.settings import load_settings
from gateway.admission.tenants import read_tenants
from gateway.settings import GatewaySettings
from gateway.workers import check, own_flags
from tests.gateway.api_keys import tenant_entry

REQUIRED = ["--models", "models", "--release", "demo-v1.0.0"]


def load(*flags: str) -> GatewaySettings:
    return load_settings(GatewaySettings, [*REQUIRED, *flags])


@pytest.mark.parametrize("num_workers", [1, 2, 3, 7])
def test_the_limits_of_all_workers_add_up_to_those_of_one(num_workers: int) -> None:
    flags = ["--workers", str(num_workers), "--max-running", "100", "--max-waiting", "5"]
    whole = load(*flags)
    parts = [load(*flags, *own_flags(whole, index)) for index in range(num_workers)]
    for name in ("max_running", "max_waiting", "max_request_bytes", "image_store_bytes", "max_connections"):
        assert sum(getattr(part, name) for part in parts) == getattr(whole, name)
        assert max(getattr(part, name) for part in parts) - min(getattr(part, name) for part in parts) <= 1
    assert {part.workers for part in parts} == {num_workers}


def test_each_worker_has_its_port_of_metrics_and_its_copy_of_the_rollout() -> None:
    flags = ["--workers", "2", "--metrics-port", "9000", "--rollout-file", "a/rollout.json"]
    second = load(*flags, *own_flags(load(*flags), 1))
    assert (second.metrics_port, second.rollout_file) == (9001, Path("a/rollout.json.1"))
    for unchanged in ("0", "-1"):
        flags = ["--workers", "2", "--metrics-port", unchanged]
        assert load(*flags, *own_flags(load(*flags), 1)).metrics_port == int(unchanged)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--max-running", "1"], "--max-running to at least 2"),
        (["--max-uploads", "1"], "--max-uploads"),
        (["--max-request-bytes", str(33 * 2**20)], "--max-request-bytes"),
        (["--image-store-bytes", str(30 * 2**20)], "--image-store-bytes"),
        (["--max-receiving-bytes", str(100 * 2**20)], "--max-receiving-bytes"),
        (["--rollout-file", "rollout.json"], "--rollout-redis"),
        (["--metrics-port", "65535"], "--metrics-port"),
    ],
)
def test_what_cannot_be_divided_or_shared_is_refused_by_name(flags: list[str], named: str) -> None:
    with pytest.raises(FailedPrecondition, match=named) as raised:
        check(load("--workers", "2", *flags))
    assert raised.value.reason == "BAD_WORKERS"


def test_defaults_and_limits_of_zero_are_divided() -> None:
    check(load("--workers", "4", "--image-store-bytes", "0", "--max-waiting", "0", "--metrics-port", "-1"))


def test_a_tenants_limits_are_divided_and_never_exceeded_together(write_keys: Callable[..., Path]) -> None:
    entry = tenant_entry("acme", new_key(), new_key(), max_running=5, max_waiting=1, requests_per_minute=60)
    (one, same) = read_tenants(write_keys(entry), num_workers=2).values()
    assert one is same
    assert (one.max_running, one.max_waiting, one.requests_per_minute, one.tokens_per_minute) == (2, 0, 30, None)


def test_a_tenants_limit_below_the_number_of_workers_is_refused(write_keys: Callable[..., Path]) -> None:
    path = write_keys(tenant_entry("acme", new_key(), max_running=1))
    assert read_tenants(path)
    with pytest.raises(FailedPrecondition, match="max_running of tenant acme is below --workers"):
        read_tenants(path, num_workers=2)
