"""Tenants: who may call, as what, and how much. Read from a TOML file of key digests that may change while we run.

[[tenants]]
name = "acme"
key_sha256 = ["2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]  # of `tandem keys new`
role = "client"
max_running = 8
tokens_per_minute = 100_000
"""

import asyncio
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from chassis.api_keys import TENANT_NAME, api_key_of, key_sha256
from chassis.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from chassis.validation import first_problem
from checkpoint.identity import MAX_SALT_BYTES

_log = structlog.get_logger()

Role = Literal["client", "operator"]


def _fits_the_contract(salt: str) -> str:
    if len(salt.encode()) > MAX_SALT_BYTES:
        raise ValueError(f"must have at most {MAX_SALT_BYTES} bytes in UTF-8")
    return salt


class Tenant(BaseModel):
    """One who calls. A limit of None is none of its own: the gateway's still hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # In logs and metrics, so nothing that could break a line.
    name: Annotated[str, StringConstraints(pattern=TENANT_NAME)]
    # SHA-256 of every key that is good, hexadecimal; two at a time let a key be changed without a gap.
    key_sha256: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...] = Field(min_length=1)
    role: Role = "client"  # an operator may change rollouts, too
    # Tenants with different salts share no cached image and no cached prefix; equal ones do.
    cache_salt: Annotated[str, AfterValidator(_fits_the_contract)] = ""
    max_running: int | None = Field(None, ge=1)  # answers at once
    max_waiting: int | None = Field(None, ge=0)  # requests that wait for their turn
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)  # of prompts and answers together

    @property
    def salt(self) -> bytes:
        """The cache salt as it goes over the wire."""
        return self.cache_salt.encode()


class _TenantFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tenants: tuple[Tenant, ...]


def anonymous(role: Role) -> Tenant:
    """Return who calls where no keys are asked for."""
    return Tenant.model_construct(name="anonymous", key_sha256=(), role=role)


def read_tenants(path: Path) -> dict[str, Tenant]:
    """Read a tenants file; return the tenants by each of their keys' digests.

    Raises:
        FailedPrecondition: reason 'BAD_KEY_FILE'; the message names the place and never a value, which may be a key.
    """
    try:
        tenants = _TenantFile.model_validate(tomllib.loads(path.read_text())).tenants
    except OSError as error:
        raise _bad(f"it cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise _bad("it is not TOML") from None
    except ValidationError as error:
        raise _bad(first_problem(error)) from None
    by_digest = {digest: tenant for tenant in tenants for digest in tenant.key_sha256}
    if len(by_digest) < sum(len(tenant.key_sha256) for tenant in tenants):
        raise _bad("a key stands there twice")
    if len({tenant.name for tenant in tenants}) < len(tenants):
        raise _bad("two tenants have the same name")
    return by_digest


def _bad(what: str) -> FailedPrecondition:
    return FailedPrecondition(f"The key file cannot be used: {what}.", reason="BAD_KEY_FILE")


class Callers:
    """Says who calls, by the keys of a file that is read again when it changes."""

    def __init__(self, path: Path | None, *, without_keys: Role) -> None:
        """Read the file.

        Args:
            path: the tenants file; None asks nobody for a key.
            without_keys: what everybody is where `path` is None.

        Raises:
            FailedPrecondition: reason 'BAD_KEY_FILE'.
        """
        self._path = path
        self._anonymous = anonymous(without_keys)
        self._version = self._stat()
        self._by_digest = read_tenants(path) if path is not None else {}

    def identify(self, metadata: Iterable[tuple[str, str | bytes]] | None, *, role: Role = "client") -> Tenant:
        """Return who makes a call, by its metadata, once it is known that they may.

        The name goes into every further log line of the call.

        Raises:
            Unauthenticated: reason 'NO_API_KEY', 'BAD_AUTHORIZATION' or 'UNKNOWN_API_KEY'.
            PermissionDenied: reason 'NOT_OPERATOR'.
        """
        tenant = self._anonymous
        if self._path is not None:
            # Looked up by digest, so what a lookup's time tells is nothing about a key.
            known = self._by_digest.get(key_sha256(api_key_of(metadata)))
            if known is None:
                raise Unauthenticated("The API key is not known here.", reason="UNKNOWN_API_KEY")
            tenant = known
        structlog.contextvars.bind_contextvars(tenant=tenant.name)
        if role == "operator" and tenant.role != "operator":
            raise PermissionDenied("Only an operator may do this.", reason="NOT_OPERATOR")
        return tenant

    async def watch(self, every_s: float) -> None:
        """Read the file again whenever it has changed, until cancelled; one that is bad changes nothing."""
        while self._path is not None:
            await asyncio.sleep(every_s)
            version = self._stat()
            if version == self._version:
                continue
            self._version = version
            try:
                self._by_digest = read_tenants(self._path)
            except FailedPrecondition as error:
                _log.error("key file not taken over, the last good one holds", error=error.message)
            else:
                _log.info("key file read", tenants=len({tenant.name for tenant in self._by_digest.values()}))

    def _stat(self) -> tuple[int, int, int] | None:
        """Return what changes when the file does; an editor's new file and a Kubernetes secret's new link, too."""
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat is not None else None
