"""Which samples the later legs of the attack relay break: `python benchmarks/legs.py --zoo DIR`.

After its first legs the relay goes on with the samples that came near to breaking. This script lets all of
them go on and prints, per model: how many samples the first legs break and how many the later ones; the
largest share of its lead that any sample had left after the first legs and was broken all the same; and how
many of the survivors lie below the share at which the relay stops by default.
"""

from __future__ import annotations

import argparse
import inspect
from pathlib import Path

import torch
from command import line
from models import data_option
from reference import NAMES
from torch import Tensor, nn
from zoo import load

import robustml as rml
from robustml.attacks.evasion.relay import relay
from robustml.losses import is_wrong, margin
from robustml.sampling import Streams
from robustml.surrogates import exact
from robustml.threats import Threat, parse_threat

FIRST = 4


class Watcher:
    """A model that remembers how near each sample of a batch came to breaking."""

    def __init__(self, net: nn.Module, y: Tensor) -> None:
        self.net, self.y = net, y
        self.rows = torch.arange(len(y))
        self.closest = torch.full((len(y),), -torch.inf)
        self.broken = torch.zeros(len(y), dtype=torch.bool)

    def focus(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        with exact():
            rows, seen, y = self.rows, logits.detach(), self.y[self.rows]
            self.closest[rows] = torch.maximum(self.closest[rows], margin(seen, y))
            self.broken[rows] |= is_wrong(seen, y)
        return logits


def attacked(net: nn.Module, x: Tensor, y: Tensor, ids: Tensor, threat: Threat, legs: int) -> Watcher:
    watcher = Watcher(net, y)
    relay(watcher, x, y, threat=threat, streams=Streams.derive(0, "legs", ids), legs=legs, near=None)
    return watcher


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--zoo", type=Path, required=True, help="folder that benchmarks/zoo.py wrote")
    parser.add_argument("--model", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--samples", type=int, default=None)
    given = parser.parse_args()
    torch.set_num_threads(1)
    legs, near = (inspect.signature(relay).parameters[name].default for name in ("legs", "near"))
    heads = ["model", f"broken by {FIRST} legs", f"by {legs - FIRST} more", "largest lead left", "they go on"]
    line(heads)
    line(["---"] * len(heads))
    for name in given.model:
        case = load(name, given.zoo, given.data, given.samples)
        net = case.net.requires_grad_(False)
        threat = parse_threat(case.threat).within(rml.InputSpec(shape=tuple(case.x.shape[1:])))
        with torch.no_grad():
            logits = torch.cat([net(part) for part in case.x.split(500)])
        right = (~is_wrong(logits, case.y)).nonzero()[:, 0]
        lead = -margin(logits[right], case.y[right])
        x, y = case.x[right], case.y[right]
        first = attacked(net, x, y, right, threat, FIRST)
        every = attacked(net, x, y, right, threat, legs)
        left = -first.closest / lead
        later = every.broken & ~first.broken
        largest = f"{float(left[later].max()):.3f}" if later.any() else "-"
        on = int((left[~first.broken] <= near).sum())
        survivors = int((~first.broken).sum())
        line([name, int(first.broken.sum()), int(later.sum()), largest, f"{on} of {survivors}"])


if __name__ == "__main__":
    main()
