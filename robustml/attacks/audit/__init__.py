"""Audits of private training: what was done against what was accounted for, and epsilon from below.

Statistics alone: nothing here trains, or needs a network.
"""

from .conformance import Check, Claims, Conformance, Parameter, canary_scores, conformance, phantom_epsilon
from .fdp import fdp_one_run
from .guessing import AuditedEpsilon
from .many_runs import many_runs, many_runs_rates
from .one_run import one_run

__all__ = [
    "AuditedEpsilon",
    "Check",
    "Claims",
    "Conformance",
    "Parameter",
    "canary_scores",
    "conformance",
    "fdp_one_run",
    "many_runs",
    "many_runs_rates",
    "one_run",
    "phantom_epsilon",
]
