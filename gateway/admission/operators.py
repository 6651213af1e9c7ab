"""Check operators, and bound their watches."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from gateway.admission.authenticator import Authenticator
from gateway.admission.controller import AdmissionController
from gateway.admission.tenants import Tenant

Context = Any  # grpc.aio.ServicerContext, whose published type lacks half of its methods


class Operators:
    """The callers of rollouts and of the gateway's status."""

    def __init__(self, authenticator: Authenticator, admission: AdmissionController) -> None:
        self._authenticator = authenticator
        self._admission = admission

    def check(self, context: Context) -> Tenant:
        """Return the operator of a call.

        Raises:
            Unauthenticated, PermissionDenied: see `Authenticator.authenticate`.
        """
        return self._authenticator.authenticate(context.invocation_metadata(), role="operator")

    def name_of(self, method: str, context: Context) -> str:
        """Return the operator's name, empty without keys."""
        self.check(context)
        return self._authenticator.name_of(method, context)

    @asynccontextmanager
    async def watch(self, context: Context) -> AsyncIterator[None]:
        """Check the operator and occupy a Watch slot.

        Raises:
            Unauthenticated, PermissionDenied: see `check`.
            ResourceExhausted: reason 'TENANT_BUSY' or 'WATCHES_BUSY'.
        """
        async with self._admission.admit_watch(self.check(context)):
            yield
