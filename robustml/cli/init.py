"""`robustml init`: a target file to start from."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import InputError
from .options import emit

__all__ = ["init"]

_TARGET = """\
# What to stress-test, and when to let it pass. Run: robustml doctor, then robustml stress
schema = 1

[model]
factory = "model.py:build"          # called without arguments; returns the torch module, in eval mode
# weights = "model.safetensors"     # loaded into it; state dicts only, never a pickle
classes = 10

[inputs]
shape = [1, 28, 28]                 # of one input, channels first
bounds = [0.0, 1.0]                 # of valid values, before normalization
# mean = [0.1307]                   # normalization happens inside the model,
# std = [0.3081]                    # so that eps is always in the units of bounds

[data]
test = "test.npz"                   # arrays x (n, *shape) and y (n,)
# samples = 1000                    # drawn from it, each class in proportion

[stress]
suite = "standard"
threats = ["linf:8/255"]

[gate]                              # judged on the unfavorable end of the confidence interval
evasion = ">= 40"
"""

_MODEL = '''\
"""Builds the model that robustml.toml names."""

from torch import nn


def build() -> nn.Module:
    """Return the model in eval mode; it must return logits, not probabilities."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    return model.eval()
'''


@click.command()
@click.argument("folder", default=".", type=click.Path(path_type=Path))
def init(folder: Path) -> None:
    """Write a commented robustml.toml and a model.py to fill in; existing files are never replaced."""
    from ..files import write_atomic

    files = {folder / "robustml.toml": _TARGET, folder / "model.py": _MODEL}
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file; name a folder")
    for path in files:
        if path.exists() or path.is_symlink():
            raise InputError(f"{str(path)!r} already exists; nothing was written")
    for path, content in files.items():
        write_atomic(path, content)
        emit(f"wrote {path}")
