"""The libraries that the suite knows. An adapter imports its library when it is made, and not before."""

from __future__ import annotations

from ..base import Adapter
from .art import ArtAdapter
from .foolbox import FoolboxAdapter
from .robustml import RobustmlAdapter
from .torchattacks import TorchattacksAdapter

__all__ = ["ADAPTERS"]

ADAPTERS: dict[str, type[Adapter]] = {
    adapter.name: adapter for adapter in (RobustmlAdapter, ArtAdapter, FoolboxAdapter, TorchattacksAdapter)
}
