"""Admission control while limits change and metrics are read."""

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack

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


POOLS = ["answers", "uploads", "tokenizing", "watches"]


def open_pool(admission: AdmissionController, pool: str, owner: Tenant) -> AbstractAsyncContextManager[object]:
    if pool == "answers":
        return admission.admit(owner, 1)
    if pool == "uploads":
        return admission.admit_upload(owner)
    return admission.admit_tokenizing(owner, 1) if pool == "tokenizing" else admission.admit_watch(owner)


@pytest.mark.parametrize("pool", POOLS)
async def test_one_tenant_leaves_a_share_of_each_pool_to_others(pool: str) -> None:
    limits = AdmissionLimits(
        max_running=8, max_waiting=0, max_uploads=8, max_tokenizing=8, max_watches=8, tenant_share=0.5
    )
    admission = AdmissionController(limits)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(open_pool(admission, pool, tenant()))
        with pytest.raises(ResourceExhausted) as raised:
            await open_pool(admission, pool, tenant()).__aenter__()
        assert raised.value.reason == "TENANT_BUSY"
        for number in range(4):
            await stack.enter_async_context(open_pool(admission, pool, tenant(f"other-{number}")))
    async with open_pool(admission, pool, tenant()):
        pass


async def test_the_bytes_of_one_tenant_leave_a_share_to_others() -> None:
    limits = AdmissionLimits(max_request_bytes=1000, max_message_bytes=400, tenant_share=0.5)
    admission = AdmissionController(limits)
    async with admission.admit(tenant(), 300) as held:
        held.grow(200)  # an image by digest
        with pytest.raises(ResourceExhausted) as raised:
            held.grow(1)
        assert raised.value.reason == "BYTES_BUSY"
        with pytest.raises(ResourceExhausted):
            await admission.admit(tenant(), 1).__aenter__()
        async with admission.admit(tenant("other"), 500):
            held.shrink(200)
            held.grow(100)
    async with admission.admit(tenant(), 500):
        pass


async def test_mirrored_requests_leave_three_quarters_to_real_ones() -> None:
    admission = AdmissionController(AdmissionLimits(max_request_bytes=1000))
    with admission.reserve_mirrored(200) as held:
        held.grow(50)
        with pytest.raises(ResourceExhausted) as raised:
            held.grow(1)
        assert raised.value.reason == "BYTES_BUSY"
        async with admission.admit(tenant(), 750):
            with pytest.raises(ResourceExhausted):
                await admission.admit(tenant(), 1).__aenter__()
    async with admission.admit(tenant(), 1000):
        with pytest.raises(ResourceExhausted):
            admission.reserve_mirrored(1).__enter__()


async def test_the_largest_request_fits_in_a_share() -> None:
    limits = AdmissionLimits(max_request_bytes=1000, max_message_bytes=800, tenant_share=0.1)
    async with AdmissionController(limits).admit(tenant(), 800):
        pass


async def test_without_shares_one_tenant_may_use_all() -> None:
    admission = AdmissionController(AdmissionLimits(max_running=2, max_waiting=0))
    async with admission.admit(tenant(), 1), admission.admit(tenant(), 1):
        with pytest.raises(ResourceExhausted) as raised:
            await admission.admit(tenant(), 1).__aenter__()
    assert raised.value.reason == "GATEWAY_BUSY"


async def test_a_limit_in_the_key_file_replaces_the_share() -> None:
    admission = AdmissionController(AdmissionLimits(max_running=4, max_waiting=0, tenant_share=0.25))
    larger = tenant(max_running=3)
    async with admission.admit(larger, 1), admission.admit(larger, 1), admission.admit(larger, 1):
        with pytest.raises(ResourceExhausted):
            await admission.admit(larger, 1).__aenter__()
