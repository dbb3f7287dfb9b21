"""Known defects of attack libraries, as cases that any library can be run against.

Each case asks a library, through a small adapter, for something that it offers (an attack, an ensemble, a
success test) on a model so small that the right answer is known, and looks at nothing but what comes back and
what the model was shown on the way. The numbers of the defects are those of the list in the documentation
(docs/explanation/conformance.md).

The suite lies beside the command that runs it, `benchmarks/conformance.py`; the tests in tests/conformance
import it from here as well. To add a library, write an `Adapter` in `adapters/` and name it in
`adapters/__init__.py`. To add a case, write a function from an adapter to (right, figure) and put it into the
list `CASES` of its file.
"""

from __future__ import annotations

from . import bookkeeping, plumbing, strength
from .base import Adapter, Case, Result, Task, Unsupported, Verdict, run_case

__all__ = ["CASES", "Adapter", "Case", "Result", "Task", "Unsupported", "Verdict", "run_case"]

CASES: tuple[Case, ...] = tuple(
    sorted((*strength.CASES, *bookkeeping.CASES, *plumbing.CASES), key=lambda case: case.defect)
)
