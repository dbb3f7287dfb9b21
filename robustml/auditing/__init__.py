"""Audits of what a model gives away about its training data: attacks and training put together."""

from .ladder import Ladder, Rung, ladder
from .membership import MembershipAudit, audit_membership
from .references import References, train_references

__all__ = [
    "Ladder",
    "MembershipAudit",
    "References",
    "Rung",
    "audit_membership",
    "ladder",
    "train_references",
]
