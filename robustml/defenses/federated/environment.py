"""What Flower and Ray would do on their own: reports to their makers, checks for updates, lines on stderr.

All of it is switched off before either is imported, since they read some of it only then.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ...extras import need

__all__ = ["SILENT", "at_home", "flower", "quiet", "switch_off"]

# Set, not proposed: no command of ours reports to anybody, whatever the shell says.
SILENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def switch_off() -> None:
    """Keep Flower and Ray, in this process and its children, from reporting, checking and installing."""
    os.environ.update(SILENT)
    telemetry = sys.modules.get("flwr.supercore.telemetry")
    if telemetry is not None:
        # It read the environment when it was imported, which was before us.
        vars(telemetry)["FLWR_TELEMETRY_ENABLED"] = "0"


def flower() -> None:
    """Make sure that Flower is there, and silent.

    Raises:
        InputError: if it is not installed, with the line that installs it.
    """
    switch_off()
    need("flwr", extra="federated", why="federated learning")


@contextlib.contextmanager
def quiet(level: int = logging.ERROR) -> Iterator[None]:
    """While this lasts, Flower logs nothing below a level; then it does what it did."""
    logger = logging.getLogger("flwr")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def at_home(folder: Path) -> Iterator[None]:
    """While this lasts, Flower keeps its own files in a folder."""
    before = os.environ.get("FLWR_HOME")
    os.environ["FLWR_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["FLWR_HOME"]
        else:
            os.environ["FLWR_HOME"] = before
