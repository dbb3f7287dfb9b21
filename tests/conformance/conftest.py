"""Let the tests import the suite from where its command finds it, beside the benchmarks."""

from __future__ import annotations

import sys
from pathlib import Path

# A package on the index installs another `benchmarks`, so that `benchmarks.known_defects` is not to be had.
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
