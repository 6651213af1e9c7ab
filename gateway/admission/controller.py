"""Admission control: limits of the gateway and of each tenant."""

import math
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from prometheus_client import Counter, Gauge

from chassis.errors import ResourceExhausted
from chassis.network import DEFAULT_MAX_MESSAGE_BYTES
from gateway.admission.concurrency import ByteLimit, ConcurrencyLimit, Reservation
from gateway.admission.tenants import Tenant
from gateway.admission.token_bucket import TokenBucket

RUNNING = Gauge("tandem_gateway_running", "Requests being answered.")
WAITING = Gauge("tandem_gateway_waiting", "Requests waiting in a queue.")
REQUEST_BYTES = Gauge("tandem_gateway_request_bytes", "Size of all waiting and running requests, bytes.")
TENANT_TOKENS = Counter(
    "tandem_gateway_tenant_tokens", "Tokens of prompts and answers, by tenant and kind.", ["tenant", "kind"]
)

# Reasons of errors by which the gateway refuses a request. They say nothing about a release.
REFUSALS = frozenset(
    {"REQUEST_RATE", "TOKEN_RATE", "BYTES_BUSY", "TENANT_BUSY", "GATEWAY_BUSY", "UPLOADS_BUSY", "WATCHES_BUSY"}
)

_UNLIMITED = 2**62
_MIRRORED_PART = 4  # mirrored requests take a quarter of the bytes at most, so that real ones have the rest


@dataclass(frozen=True, slots=True, kw_only=True)
class AdmissionLimits:
    """The gateway's limits, over all tenants together."""

    max_running: int = 256  # requests answered at once
    max_waiting: int = 256  # requests in the queue
    max_request_bytes: int = 256 * 2**20  # of all waiting and running requests, and the images that they hold
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES  # of one request
    max_uploads: int = 16  # PutImage calls at once
    max_tokenizing: int = 16  # CountTokens, Tokenize and Detokenize calls at once, others wait in a queue
    max_watches: int = 64  # Watch calls of operators at once
    tenant_share: float = 1.0  # of each of these that one tenant may use

    def share_of(self, number: int) -> int:
        """Return a tenant's share of a limit.

        It is at least 1 unless the limit is 0. With a share of 1, only the gateway's own limit applies.
        """
        if self.tenant_share >= 1:
            return _UNLIMITED
        return min(number, max(1, math.floor(self.tenant_share * number)))


class AdmissionController:
    """Admits requests within all limits, and refuses others at once.

    For one event loop.
    """

    def __init__(self, limits: AdmissionLimits) -> None:
        self._answers = ConcurrencyLimit(
            max_running=limits.max_running, max_waiting=limits.max_waiting, subject="The gateway", reason="GATEWAY_BUSY"
        )
        self._limits = limits
        self._uploads = ConcurrencyLimit(
            max_running=limits.max_uploads, max_waiting=0, subject="PutImage", reason="UPLOADS_BUSY"
        )
        self._tokenizing = ConcurrencyLimit(
            max_running=limits.max_tokenizing,
            max_waiting=limits.max_waiting,
            subject="The gateway",
            reason="GATEWAY_BUSY",
        )
        self._watches = ConcurrencyLimit(
            max_running=limits.max_watches, max_waiting=0, subject="Watch", reason="WATCHES_BUSY"
        )
        self._bytes = ByteLimit(limits.max_request_bytes)
        self._mirrored_bytes = ByteLimit(limits.max_request_bytes // _MIRRORED_PART)
        self._usages: dict[str, _TenantUsage] = {}
        RUNNING.set_function(lambda: self._answers.num_running)
        REQUEST_BYTES.set_function(lambda: self._bytes.num_bytes)
        WAITING.set_function(lambda: self._answers.num_waiting + self._num_waiting_by_tenant())

    @asynccontextmanager
    async def admit(self, tenant: Tenant, num_bytes: int) -> AsyncIterator[Reservation]:
        """Wait in the queue, then occupy an answer slot.

        The slot is released at the end of the block.

        Yields:
            The request's bytes, reserved for the block. Images that it names by digest are added to them.

        Args:
            tenant: owner of the request.
            num_bytes: size of the request.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE', 'TOKEN_RATE', 'BYTES_BUSY', 'TENANT_BUSY' or 'GATEWAY_BUSY'.
                `retry_after_s` says when to retry.
        """
        usage = self._usage(tenant)
        usage.take_tokens(0)  # refuses while earlier answers left a debt
        usage.count_request()
        with self._reserve((usage.bytes, self._bytes), num_bytes) as held:
            async with usage.answers.slot(), self._answers.slot():
                yield held

    @asynccontextmanager
    async def admit_upload(self, tenant: Tenant) -> AsyncIterator[Reservation]:
        """Occupy a slot for one image upload during the block.

        Yields:
            The bytes of the upload, none yet.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE', 'TENANT_BUSY' or 'UPLOADS_BUSY'.
        """
        usage = self._usage(tenant)
        usage.count_request()
        with self._reserve((usage.bytes, self._bytes), 0) as held:
            async with usage.uploads.slot(), self._uploads.slot():
                yield held

    @asynccontextmanager
    async def admit_tokenizing(self, tenant: Tenant, num_bytes: int) -> AsyncIterator[Reservation]:
        """Wait in a queue, then occupy a tokenizing slot.

        Yields:
            The request's bytes, as `admit`.

        Raises:
            ResourceExhausted: reason 'REQUEST_RATE', 'BYTES_BUSY', 'TENANT_BUSY' or 'GATEWAY_BUSY'.
        """
        usage = self._usage(tenant)
        usage.count_request()
        with self._reserve((usage.bytes, self._bytes), num_bytes) as held:
            async with usage.tokenizing.slot(), self._tokenizing.slot():
                yield held

    @asynccontextmanager
    async def admit_watch(self, tenant: Tenant) -> AsyncIterator[None]:
        """Occupy a slot for one Watch call during the block.

        Raises:
            ResourceExhausted: reason 'TENANT_BUSY' or 'WATCHES_BUSY'.
        """
        async with self._usage(tenant).watches.slot(), self._watches.slot():
            yield

    @contextmanager
    def reserve_mirrored(self, num_bytes: int) -> Iterator[Reservation]:
        """Reserve the bytes of a mirrored request for the block.

        Yields:
            The bytes. Images that the request names by digest are added to them.

        Raises:
            ResourceExhausted: reason 'BYTES_BUSY'.
        """
        with self._reserve((self._mirrored_bytes, self._bytes), num_bytes) as held:
            yield held

    @contextmanager
    def _reserve(self, limits: Sequence[ByteLimit], num_bytes: int) -> Iterator[Reservation]:
        held = Reservation(limits, self._answers.time_to_clear_s)
        try:
            held.grow(num_bytes)
            yield held
        finally:
            held.close()

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
        return sum(usage.answers.num_waiting for usage in list(self._usages.values()))

    def _usage(self, tenant: Tenant) -> "_TenantUsage":
        """Return the usage of a tenant, with its current limits."""
        usage = self._usages.get(tenant.name)
        if usage is None:
            usage = self._usages[tenant.name] = _TenantUsage(tenant, self._limits)
        elif usage.tenant is not tenant:
            usage.set_limits(tenant)
        return usage


class _TenantUsage:
    """Slots, requests and tokens one tenant uses."""

    def __init__(self, tenant: Tenant, limits: AdmissionLimits) -> None:
        self._limits = limits
        share_of = limits.share_of
        self.answers = _tenant_limit(1)  # sized by `set_limits`
        self.uploads = _tenant_limit(share_of(limits.max_uploads))
        self.tokenizing = _tenant_limit(share_of(limits.max_tokenizing), max_waiting=share_of(limits.max_waiting))
        self.watches = _tenant_limit(share_of(limits.max_watches))
        # The largest request fits in any share.
        max_bytes = max(share_of(limits.max_request_bytes), min(limits.max_message_bytes, limits.max_request_bytes))
        self.bytes = ByteLimit(max_bytes, subject="This API key's tenant")
        self._requests: TokenBucket | None = None
        self._tokens: TokenBucket | None = None
        self.set_limits(tenant)

    def set_limits(self, tenant: Tenant) -> None:
        """Apply changed limits.

        Slots in use stay, and an unchanged rate keeps its level.
        """
        self.tenant = tenant
        limits = self._limits
        max_running, max_waiting = limits.share_of(limits.max_running), limits.share_of(limits.max_waiting)
        if tenant.max_running is not None:
            max_running, max_waiting = tenant.max_running, tenant.max_waiting or 0
        elif tenant.max_waiting is not None:
            max_waiting = tenant.max_waiting
        self.answers.resize(max_running=max_running, max_waiting=max_waiting)
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


def _tenant_limit(max_running: int, *, max_waiting: int = 0) -> ConcurrencyLimit:
    return ConcurrencyLimit(
        max_running=max_running, max_waiting=max_waiting, subject="This API key's tenant", reason="TENANT_BUSY"
    )


def _bucket_for(per_minute: int | None, bucket: TokenBucket | None) -> TokenBucket | None:
    """Return the bucket of a rate, None without a limit.

    An unchanged rate keeps its bucket.
    """
    if per_minute is None:
        return None
    return bucket if bucket is not None and bucket.per_minute == per_minute else TokenBucket(per_minute)
