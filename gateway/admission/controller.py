"""Admission control: limits of the gateway and of each tenant."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from chassis.errors import ResourceExhausted
from gateway.admission.concurrency import ByteLimit, ConcurrencyLimit
from gateway.admission.tenants import Tenant
from gateway.admission.token_bucket import TokenBucket

RUNNING = Gauge("tandem_gateway_running", "Requests being answered.")
WAITING = Gauge("tandem_gateway_waiting", "Requests waiting in a queue.")
REQUEST_BYTES = Gauge("tandem_gateway_request_bytes", "Size of all waiting and running requests, bytes.")
TENANT_TOKENS = Counter(
    "tandem_gateway_tenant_tokens", "Tokens of prompts and answers, by tenant and kind.", ["tenant", "kind"]
)

# For a tenant without a limit of its own. The gateway's limit still applies.
_UNLIMITED = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """The gateway's limits, over all tenants together."""

    max_running: int = 256  # requests answered at once
    max_waiting: int = 256  # requests in the queue
    max_request_bytes: int = 256 * 2**20  # of all waiting and running requests
    max_uploads: int = 16  # PutImage calls at once


class AdmissionController:
    """Admits requests within all limits, and refuses others at once.

    For one event loop.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._answers = ConcurrencyLimit(
            max_running=limits.max_running, max_waiting=limits.max_waiting, subject="The gateway", reason="GATEWAY_BUSY"
        )
        self._uploads = ConcurrencyLimit(
            max_running=limits.max_uploads, max_waiting=0, subject="PutImage", reason="UPLOADS_BUSY"
        )
        self._bytes = ByteLimit(limits.max_request_bytes)
        self._usages: dict[str, _TenantUsage] = {}
        RUNNING.set_function(lambda: self._answers.num_running)
        REQUEST_BYTES.set_function(lambda: self._bytes.num_bytes)
        WAITING.set_function(lambda: self._answers.num_waiting + self._num_waiting_by_tenant())

    @asynccontextmanager
    async def admit(self, tenant: Tenant, num_bytes: int) -> AsyncIterator[None]:
        """Wait in the queue, then occupy an answer slot.

        The slot is released at the end of the block.

        Args:
            tenant: owner of the request.
            num_bytes: size of the request, reserved for the block.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE', 'TOKEN_RATE', 'BYTES_BUSY', 'TENANT_BUSY' or 'GATEWAY_BUSY'.
                `retry_after_s` says when to retry.
        """
        usage = self._usage(tenant)
        usage.take_tokens(0)  # refuses while earlier answers left a debt
        usage.count_request()
        with self._bytes.reserve(num_bytes, retry_after_s=self._answers.time_to_clear_s()):
            async with usage.concurrency.slot(), self._answers.slot():
                yield

    @asynccontextmanager
    async def admit_upload(self, tenant: Tenant) -> AsyncIterator[None]:
        """Occupy a slot for one image upload during the block.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE' or 'UPLOADS_BUSY'.
        """
        self.count_request(tenant)
        async with self._uploads.slot():
            yield

    def count_request(self, tenant: Tenant) -> None:
        """Count a call that needs no slot.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE'.
        """
        self._usage(tenant).count_request()

    def take_prompt_tokens(self, tenant: Tenant, num_tokens: int) -> None:
        """Take a prompt's tokens from the tenant's current rate limit.

        Raises:
            ResourceExhausted: reason 'TOKEN_RATE'.
        """
        self._usages[tenant.name].take_tokens(num_tokens)
        TENANT_TOKENS.labels(tenant.name, "prompt").inc(num_tokens)

    def charge_answer_tokens(self, tenant: Tenant, num_tokens: int) -> None:
        """Charge an answer's tokens, even beyond the rate limit.

        They are spent already. A debt delays later requests.
        """
        self._usages[tenant.name].charge_tokens(num_tokens)
        TENANT_TOKENS.labels(tenant.name, "answer").inc(num_tokens)

    def _num_waiting_by_tenant(self) -> int:
        # A copy, because the metrics thread reads this while new tenants are added.
        return sum(usage.concurrency.num_waiting for usage in list(self._usages.values()))

    def _usage(self, tenant: Tenant) -> "_TenantUsage":
        """Return the usage of a tenant, with its current limits."""
        usage = self._usages.get(tenant.name)
        if usage is None:
            usage = self._usages[tenant.name] = _TenantUsage(tenant)
        elif usage.tenant is not tenant:
            usage.set_limits(tenant)
        return usage


class _TenantUsage:
    """Slots, requests and tokens one tenant uses."""

    def __init__(self, tenant: Tenant) -> None:
        self.concurrency = ConcurrencyLimit(
            max_running=_UNLIMITED, max_waiting=0, subject="This API key's tenant", reason="TENANT_BUSY"
        )
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self.set_limits(tenant)

    def set_limits(self, tenant: Tenant) -> None:
        """Apply changed limits.

        Slots in use stay, and an unchanged rate keeps its level.
        """
        self.tenant = tenant
        self.concurrency.resize(max_running=tenant.max_running or _UNLIMITED, max_waiting=tenant.max_waiting or 0)
        self._requests = _bucket_for(tenant.requests_per_minute, self._requests)
        self._tokens = _bucket_for(tenant.tokens_per_minute, self._tokens)

    def count_request(self) -> None:
        if self._requests is not None and (wait_s := self._requests.take(1)):
            raise ResourceExhausted(
                f"This tenant may send {self._requests.per_minute} requests per minute: retry later.",
                reason="REQUEST_RATE",
                retry_after_s=wait_s,
            )

    def take_tokens(self, num_tokens: int) -> None:
        if self._tokens is not None and (wait_s := self._tokens.take(num_tokens)):
            raise ResourceExhausted(
                f"This tenant may use {self._tokens.per_minute} tokens per minute, of prompts and answers together: "
                "retry later.",
                reason="TOKEN_RATE",
                retry_after_s=wait_s,
            )

    def charge_tokens(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.charge(num_tokens)


def _bucket_for(per_minute: int | None, bucket: TokenBucket | None) -> TokenBucket | None:
    """Return the bucket of a rate, None without a limit.

    An unchanged rate keeps its bucket.
    """
    if per_minute is None:
        return None
    return bucket if bucket is not None and bucket.per_minute == per_minute else TokenBucket(per_minute)
