"""Authenticate callers, and limit their requests and tokens."""

from gateway.admission.authenticator import Authenticator
from gateway.admission.controller import AdmissionController, AdmissionLimits
from gateway.admission.tenants import Role, Tenant

__all__ = [
    "AdmissionController",
    "AdmissionLimits",
    "Authenticator",
    "Role",
    "Tenant",
]
