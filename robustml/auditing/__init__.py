"""Audits of what a model gives away about its training data: attacks and training put together."""

from .canaries import CanaryAudit, audit_by_many_runs, audit_with_canaries
from .ladder import Ladder, Rung, ladder
from .membership import MembershipAudit, audit_membership
from .phantoms import PhantomAudit, audit_training
from .references import References, train_references

__all__ = [
    "CanaryAudit",
    "Ladder",
    "MembershipAudit",
    "PhantomAudit",
    "References",
    "Rung",
    "audit_by_many_runs",
    "audit_membership",
    "audit_training",
    "audit_with_canaries",
    "ladder",
    "train_references",
]
