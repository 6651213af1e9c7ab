"""Authenticate callers by API key."""

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import structlog

from chassis.api_keys import api_key_of, key_sha256
from chassis.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from gateway.admission.tenants import Role, Tenant, read_tenants

ANONYMOUS = "anonymous"  # the tenant of all callers, where no keys are asked for

_log = structlog.get_logger()


class Authenticator:
    """Finds the tenant of a call by its API key.

    The key file is read again after each change.
    """

    def __init__(self, path: Path | None, *, role_without_keys: Role, num_workers: int = 1) -> None:
        """Read the key file.

        Args:
            path: the key file. None accepts calls without a key.
            role_without_keys: role of every caller if `path` is None.
            num_workers: processes of this gateway, among which the limits of each tenant are divided.

        Raises:
            FailedPrecondition: reason 'BAD_KEY_FILE'.
        """
        self._path = path
        self._num_workers = num_workers
        # Callers without keys share caches. From elsewhere they are strangers to each other.
        group = "" if role_without_keys == "operator" else "anonymous"
        self._anonymous = Tenant(name=ANONYMOUS, role=role_without_keys, cache_group=group)
        self._file_version = self._read_file_version()
        self._by_key_sha256 = read_tenants(path, num_workers) if path is not None else {}

    def authenticate(self, metadata: Iterable[tuple[str, str | bytes]] | None, *, role: Role = "client") -> Tenant:
        """Return the tenant of a call, after checking its role.

        Every later log line of the call carries the tenant's name.

        Args:
            metadata: the call's metadata.
            role: 'operator' for a call only operators may make.

        Raises:
            Unauthenticated: reason 'NO_API_KEY', 'BAD_AUTHORIZATION' or 'UNKNOWN_API_KEY'.
            PermissionDenied: reason 'NOT_OPERATOR'.
        """
        tenant = self._anonymous
        if self._path is not None:
            # Lookup by hash, so its duration reveals nothing about a key.
            known = self._by_key_sha256.get(key_sha256(api_key_of(metadata)))
            if known is None:
                raise Unauthenticated(
                    "The API key is unknown: ask the gateway's operator for a key.", reason="UNKNOWN_API_KEY"
                )
            tenant = known
        structlog.contextvars.bind_contextvars(tenant=tenant.name)
        if role == "operator" and tenant.role != "operator":
            raise PermissionDenied("This call needs an operator's API key.", reason="NOT_OPERATOR")
        return tenant

    def name_of(self, _method: str, context: Any) -> str:
        """Return the tenant's name, empty without keys.

        The server asks before it reads the request.
        """
        name = self.authenticate(context.invocation_metadata()).name
        return name if self._path is not None else ""

    async def watch(self, interval_s: float) -> None:
        """Reload the key file after each change, until cancelled.

        An invalid file is logged, and the last valid tenants stay in force.
        """
        while self._path is not None:
            await asyncio.sleep(interval_s)
            version = self._read_file_version()
            if version == self._file_version:
                continue
            self._file_version = version
            try:
                self._by_key_sha256 = read_tenants(self._path, self._num_workers)
            except FailedPrecondition as error:
                _log.error("key file invalid, keeping the last tenants", error=error.local_message)
            else:
                _log.info("key file reloaded", tenants=len({tenant.name for tenant in self._by_key_sha256.values()}))

    def _read_file_version(self) -> tuple[int, int, int] | None:
        """Return values that differ after a change of the file.

        They also differ when an editor replaces the file, or Kubernetes the link to a secret.
        """
        try:
            stat = self._path.stat() if self._path is not None else None
        except OSError:
            return None
        return (stat.st_mtime_ns, stat.st_ino, stat.st_size) if stat is not None else None
