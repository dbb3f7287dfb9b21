"""The attacks of several libraries at the same budgets. A library is imported when it is asked for."""

from __future__ import annotations

from .art import ART
from .base import JOBS, Batch, Entry, Job, Library
from .foolbox import FOOLBOX
from .ours import OURS
from .torchattacks import TORCHATTACKS

__all__ = ["JOBS", "LIBRARIES", "Batch", "Entry", "Job", "Library"]

LIBRARIES: dict[str, Library] = {library.name: library for library in (OURS, ART, FOOLBOX, TORCHATTACKS)}
