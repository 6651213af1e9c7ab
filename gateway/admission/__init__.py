"""Authenticate callers, and limit their requests and tokens."""

from gateway.admission.authenticator import ANONYMOUS, Authenticator
from gateway.admission.controller import REFUSALS, AdmissionController, AdmissionLimits
from gateway.admission.operators import Operators
from gateway.admission.tenants import Role, Tenant

__all__ = [
    "ANONYMOUS",
    "REFUSALS",
    "AdmissionController",
    "AdmissionLimits",
    "Authenticator",
    "Operators",
    "Role",
    "Tenant",
]
