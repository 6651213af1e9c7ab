"""Who gets in: rates and places of tenants, places and memory of the gateway. What does not fit is refused at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from chassis.errors import ResourceExhausted
from gateway.admission.gate import ByteLimit, Gate
from gateway.admission.tenants import Tenant
from gateway.admission.token_bucket import Bucket

RUNNING = Gauge("tandem_gateway_running", "Answers that are being given.")
WAITING = Gauge("tandem_gateway_waiting", "Requests that wait for their turn.")
REQUEST_BYTES = Gauge("tandem_gateway_request_bytes", "Size of the requests that wait or are being answered, bytes.")
TENANT_TOKENS = Counter(
    "tandem_gateway_tenant_tokens", "Tokens of prompts and answers, by tenant and kind.", ["tenant", "kind"]
)


# What a tenant without a limit of its own gets; the gateway's gate comes after.
_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """The gateway's own limits, over all tenants."""

    max_running: int = 256  # answers at once
    max_waiting: int = 256  # requests that wait for their turn
    max_request_bytes: int = 256 * 2**20  # of all requests that wait or are being answered
    max_uploads: int = 16  # images taken by PutImage at once


class Admission:
    """Counts what tenants use; for one event loop."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self._answers = Gate(
            max_running=limits.max_running, max_waiting=limits.max_waiting, who="The gateway", reason="GATEWAY_BUSY"
        )
        self._bytes = ByteLimit(limits.max_request_bytes)
        self._uploads = Gate(max_running=limits.max_uploads, max_waiting=0, who="The gateway", reason="UPLOADS_BUSY")
        self._shares: dict[str, _Share] = {}
        RUNNING.set_function(lambda: self._answers.num_running)
        REQUEST_BYTES.set_function(lambda: self._bytes.num_bytes)
        WAITING.set_function(lambda: self._answers.num_waiting + self._num_waiting_by_tenant())

    @asynccontextmanager
    async def answering(self, tenant: Tenant, num_bytes: int) -> AsyncIterator[None]:
        """Hold a place for one answer while the block runs, after a wait for it where there is a queue.

        Args:
            tenant: who asks.
            num_bytes: size of the request, which is held all the while.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE', 'TOKEN_RATE', 'BYTES_BUSY', 'TENANT_BUSY' or 'GATEWAY_BUSY'; says
                when to come again.
        """
        share = self._share(tenant)
        share.take_tokens(0)  # nothing, where earlier answers left no debt
        share.count_request()
        with self._bytes.hold(num_bytes, retry_after_s=self._answers.time_to_clear_s()):
            async with share.gate.enter(), self._answers.enter():
                yield

    @asynccontextmanager
    async def uploading(self, tenant: Tenant) -> AsyncIterator[None]:
        """Hold a place for one image being taken while the block runs.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE' or 'UPLOADS_BUSY'.
        """
        self.count_request(tenant)
        async with self._uploads.enter():
            yield

    def count_request(self, tenant: Tenant) -> None:
        """Count a call that takes no place.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE'.
        """
        self._share(tenant).count_request()

    def take_prompt(self, tenant: Tenant, num_tokens: int) -> None:
        """Count the tokens of a prompt before anything is done about it, by the limits its tenant has by now.

        Raises:
            ResourceExhausted: reason 'TOKEN_RATE'.
        """
        self._shares[tenant.name].take_tokens(num_tokens)
        TENANT_TOKENS.labels(tenant.name, "prompt").inc(num_tokens)

    def charge_answer(self, tenant: Tenant, num_tokens: int) -> None:
        """Count the tokens of an answer, which cannot be refused any more; later requests wait for them."""
        self._shares[tenant.name].charge_tokens(num_tokens)
        TENANT_TOKENS.labels(tenant.name, "answer").inc(num_tokens)

    def _num_waiting_by_tenant(self) -> int:
        # A copy: metrics are read by a thread of their own, while tenants come for the first time.
        return sum(share.gate.num_waiting for share in list(self._shares.values()))

    def _share(self, tenant: Tenant) -> "_Share":
        """Return what the tenant of a call that begins now uses; its limits are the latest."""
        share = self._shares.get(tenant.name)
        if share is None:
            share = self._shares[tenant.name] = _Share(tenant)
        elif share.tenant is not tenant:
            share.change(tenant)
        return share


class _Share:
    """What one tenant uses."""

    def __init__(self, tenant: Tenant) -> None:
        self.gate = Gate(max_running=_UNLIMITED, max_waiting=0, who="This API key's tenant", reason="TENANT_BUSY")
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.change(tenant)

    def change(self, tenant: Tenant) -> None:
        """Take over limits that changed; what is used stays used, and a rate that did not change keeps its level."""
        self.tenant = tenant
        self.gate.resize(max_running=tenant.max_running or _UNLIMITED, max_waiting=tenant.max_waiting or 0)
        self._requests = _bucket(self._requests, tenant.requests_per_minute)
        self._tokens = _bucket(self._tokens, tenant.tokens_per_minute)

    def count_request(self) -> None:
        if self._requests is not None and (wait_s := self._requests.take(1)):
            raise ResourceExhausted(
                f"This tenant may send {self._requests.per_minute} requests a minute.",
                reason="REQUEST_RATE",
                retry_after_s=wait_s,
            )

    def take_tokens(self, num_tokens: int) -> None:
        if self._tokens is not None and (wait_s := self._tokens.take(num_tokens)):
            raise ResourceExhausted(
                f"This tenant may use {self._tokens.per_minute} tokens a minute, of prompts and answers together.",
                reason="TOKEN_RATE",
                retry_after_s=wait_s,
            )

    def charge_tokens(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.charge(num_tokens)


def _bucket(bucket: Bucket | None, per_minute: int | None) -> Bucket | None:
    if per_minute is None:
        return None
    return bucket if bucket is not None and bucket.per_minute == per_minute else Bucket(per_minute)
