"""Measure, and harden, a classifier's resistance to adversarial inputs.

Everything public is here; it is imported when first used, so that `import robustml` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "BlackBox": "classifier",
    "Classifier": "classifier",
    "Comparison": "report.compare",
    "Estimate": "report.model",
    "Guard": "guards",
    "Guarded": "guarded",
    "InputError": "errors",
    "InputSpec": "inputs",
    "L0": "threats",
    "L1": "threats",
    "L2": "threats",
    "Linf": "threats",
    "Report": "report.model",
    "RobustmlError": "errors",
    "RunError": "errors",
    "Streams": "sampling",
    "Target": "targets",
    "Threat": "threats",
    "attack": "registry",
    "audit": "api",
    "compare": "report.compare",
    "federate": "defenses.federated",
    "guard": "guards",
    "harden": "defenses.training",
    "load_target": "targets",
    "stress_test": "api",
}

if TYPE_CHECKING:
    from .api import audit as audit
    from .api import stress_test as stress_test
    from .classifier import BlackBox as BlackBox
    from .classifier import Classifier as Classifier
    from .defenses.federated import federate as federate
    from .defenses.training import harden as harden
    from .errors import InputError as InputError
    from .errors import RobustmlError as RobustmlError
    from .errors import RunError as RunError
    from .guarded import Guarded as Guarded
    from .guards import Guard as Guard
    from .guards import guard as guard
    from .inputs import InputSpec as InputSpec
    from .registry import attack as attack
    from .report.compare import Comparison as Comparison
    from .report.compare import compare as compare
    from .report.model import Estimate as Estimate
    from .report.model import Report as Report
    from .sampling import Streams as Streams
    from .targets import Target as Target
    from .targets import load_target as load_target
    from .threats import L0 as L0
    from .threats import L1 as L1
    from .threats import L2 as L2
    from .threats import Linf as Linf
    from .threats import Threat as Threat


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
