"""Decide who may ask, how much, and when."""

from gateway.admission.admission import Admission, AdmissionLimits
from gateway.admission.tenants import Callers, Role, Tenant

__all__ = [
    "Admission",
    "AdmissionLimits",
    "Callers",
    "Role",
    "Tenant",
]
