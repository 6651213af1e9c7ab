"""Admission control while limits change and metrics are read."""

import sys
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import REGISTRY

from chassis.errors import ResourceExhausted
from gateway.admission.controller import AdmissionController, AdmissionLimits
from gateway.admission.tenants import Tenant


def tenant(name: str = "acme", **limits: int) -> Tenant:
    return Tenant.model_validate({"name": name, **limits})


@pytest.fixture
def frequent_thread_switches() -> Iterator[None]:
    """Switch between threads as often as possible."""
    default_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(default_s)


async def test_a_request_admitted_under_old_limits_does_not_restore_them() -> None:
    """Restoring a rate would refill its bucket."""
    admission = AdmissionController(AdmissionLimits())
    before, now = tenant(tokens_per_minute=1000), tenant(tokens_per_minute=100)
    async with admission.admit(before, 1):
        async with admission.admit(now, 1):
            admission.take_prompt_tokens(now, 100)
        with pytest.raises(ResourceExhausted):
            admission.take_prompt_tokens(before, 10)
    admission.charge_answer_tokens(before, 10)
    with pytest.raises(ResourceExhausted) as raised:
        await admission.admit(now, 1).__aenter__()
    assert raised.value.reason == "TOKEN_RATE"


@pytest.mark.usefixtures("frequent_thread_switches")
def test_metrics_can_be_read_while_new_tenants_arrive() -> None:
    """Metrics are read by another thread."""
    admission, all_arrived, failed = AdmissionController(AdmissionLimits()), threading.Event(), threading.Event()

    def read() -> None:
        while not all_arrived.is_set():
            try:
                REGISTRY.get_sample_value("tandem_gateway_waiting")
            except RuntimeError:
                failed.set()

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(2000):
        admission.count_request(tenant(f"tenant-{number}"))
    all_arrived.set()
    reader.join()
    assert not failed.is_set()
