"""Read tenants, with key hashes and limits, from TOML.

[[tenants]]
name = "acme"
key_sha256 = ["2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"]  # printed by `tandem keys new`
role = "client"
max_running = 8
tokens_per_minute = 100_000
"""

import hashlib
import re
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from chassis.api_keys import TENANT_NAME
from chassis.errors import FailedPrecondition
from chassis.validation import first_problem

# A tester may also pin a canary. An operator may also pin it, and change rollouts.
Role = Literal["client", "tester", "operator"]

_LIMITS = ("max_running", "max_waiting", "requests_per_minute", "tokens_per_minute")  # of a tenant


class Tenant(BaseModel):
    """A tenant and its limits.

    The gateway's own limits apply in any case. A limit of None adds none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    # Appears in logs and metrics, so the pattern excludes line breaks.
    name: Annotated[str, StringConstraints(pattern=TENANT_NAME)]
    role: Role = "client"
    # The tenants of one group share cached images, cached prefixes and uploaded images. Others share nothing.
    # Older key files have it as `cache_salt`, with the same meaning.
    cache_group: Annotated[str, StringConstraints(max_length=64)] = Field(
        default="", validation_alias=AliasChoices("cache_group", "cache_salt")
    )
    max_running: int | None = Field(default=None, ge=1)  # requests answered at once
    max_waiting: int | None = Field(default=None, ge=0)  # requests in the queue beyond those answered
    requests_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)  # of prompts and answers together

    @property
    def salt(self) -> bytes:
        """The cache salt of the group or tenant, 32 bytes.

        A digest, so that no name of a group gives the salt of a tenant.
        """
        kind, name = ("group", self.cache_group) if self.cache_group else ("tenant", self.name)
        return hashlib.sha256(f"tandem/cache-salt/1\n{kind}\n{name}".encode()).digest()

    @property
    def may_pin_canary(self) -> bool:
        """Whether the role allows a canary before its promotion."""
        return self.role != "client"

    @property
    def shares_caches(self) -> bool:
        """Whether other tenants, or strangers, have the same salt."""
        return bool(self.cache_group)


class _TenantEntry(Tenant):
    # SHA-256 of every valid key, in hexadecimal. Two at a time let a key be rotated without downtime.
    key_sha256: tuple[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")], ...] = Field(min_length=1)

    def indivisible(self, num_workers: int) -> str | None:
        """Return the name of a limit too small to divide."""
        return next((name for name, limit in self._limits() if name != "max_waiting" and limit < num_workers), None)

    def part(self, num_workers: int) -> Tenant:
        """Return the tenant as one of several workers sees it."""
        divided = {name: limit // num_workers for name, limit in self._limits()}
        return Tenant.model_validate(self.model_dump(exclude={"key_sha256"}) | divided)

    def _limits(self) -> list[tuple[str, int]]:
        """Return the limits that are set, by name."""
        limits = ((name, getattr(self, name)) for name in _LIMITS)
        return [(name, limit) for name, limit in limits if limit is not None]


class _TenantFile(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    tenants: tuple[_TenantEntry, ...]


def read_tenants(path: Path, num_workers: int = 1) -> dict[str, Tenant]:
    """Return the tenants of a key file, by key SHA-256.

    Args:
        path: the key file.
        num_workers: processes of this gateway, among which the limits of each tenant are divided.

    Raises:
        FailedPrecondition: reason 'BAD_KEY_FILE'. The message names the field and never its value, which may be a key
            pasted by mistake.
    """
    try:
        tenants = _TenantFile.model_validate(tomllib.loads(path.read_text())).tenants
    except OSError as error:
        raise _bad_file(path, f"it cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise _bad_file(path, "it is not TOML, because it is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        position = re.search(r" \(at .*\)$", str(error))
        raise _bad_file(path, f"it is not TOML{position[0] if position else ''}") from None
    except ValidationError as error:
        raise _bad_file(path, first_problem(error)) from None
    by_key_sha256: dict[str, Tenant] = {}
    for tenant in tenants:
        if (limit := tenant.indivisible(num_workers)) is not None:
            raise _bad_file(path, f"{limit} of tenant {tenant.name} is below --workers, among which it is divided")
        by_key_sha256 |= dict.fromkeys(tenant.key_sha256, tenant.part(num_workers))
    if len(by_key_sha256) < sum(len(tenant.key_sha256) for tenant in tenants):
        raise _bad_file(path, "a key is listed twice")
    if len({tenant.name for tenant in tenants}) < len(tenants):
        raise _bad_file(path, "two tenants have the same name")
    return by_key_sha256


def _bad_file(path: Path, problem: str) -> FailedPrecondition:
    return FailedPrecondition(f"Fix the key file: {problem}.", reason="BAD_KEY_FILE", where=path)
