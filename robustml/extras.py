"""Optional dependencies: imported when needed, and named with their install line when missing."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import InputError

__all__ = ["need"]


def need(module: str, *, extra: str, why: str) -> Any:
    """Import a module of an optional dependency.

    Raises:
        InputError: if it is not installed, with the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"{why} needs {module.partition('.')[0]}, which is not installed; "
            f"run: pip install 'robustml-hardening[{extra}]'"
        ) from None
