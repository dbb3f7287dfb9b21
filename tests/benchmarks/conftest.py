"""Let the tests import the benchmarks from where they lie."""

from __future__ import annotations

import sys
from pathlib import Path

# A package on the index installs another `benchmarks`, so that `benchmarks.floor` is not to be had.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
