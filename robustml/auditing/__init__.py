"""Audits of what a model gives away about its training data: attacks and training put together."""

from .membership import MembershipAudit, audit_membership
from .references import References, train_references

__all__ = ["MembershipAudit", "References", "audit_membership", "train_references"]
