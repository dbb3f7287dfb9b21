"""A small service on digits: a trained network behind a query detector, and clients who attack it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from robustml.defenses.guards.queries import QueryDetector
from robustml.inputs import InputSpec
from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import L2, Linf, Threat

__all__ = ["ATTACKS", "INPUTS", "Attempt", "attempt", "digits", "trained"]

INPUTS = InputSpec(shape=(1, 8, 8))
ATTACKS: dict[str, Threat] = {
    "square": Linf(0.08),
    "hop-skip-jump": L2(0.4),
    "boundary": L2(0.4),
    "rays": Linf(0.08),
}
"""Black-box attacks, each with a budget that it needs hundreds of queries for on some images."""

Change = Callable[[Tensor, int], Tensor]

_ATTEMPTS = itertools.count()


@functools.cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1200 images to fit to and 597 fresh ones, with their labels, shuffled."""
    data = load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.from_numpy(data.images).float()[order, None] / 16
    y = torch.from_numpy(data.target)[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


@functools.cache
def trained() -> nn.Module:
    """A network that is right about more than 95 % of the fresh images."""
    x, y, _, _ = digits()
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    torch.set_rng_state(state)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


class Caught(Exception):
    """The service has closed all the accounts of a client."""


@dataclass(frozen=True)
class Attempt:
    """What came of an attack on one image.

    Attributes:
        queries: How many the service got, or had got when it found out.
        caught: Whether it did.
        broken: Whether the attack has an adversarial example within the budget, caught or not.
    """

    queries: int
    caught: bool
    broken: bool


def attempt(
    name: str,
    detector: QueryDetector,
    x: Tensor,
    y: Tensor,
    *,
    queries: int,
    accounts: int = 1,
    hide: int = 0,
    change: Change | None = None,
) -> Attempt:
    """Attack one image (1, 1, 8, 8) of a service until it succeeds, is caught, or has asked enough.

    Args:
        queries: How many the attack may ask, without what it is hidden among.
        accounts: How many take turns; each is closed by its first flag, and the last ends the attack.
        hide: How many images of noise are asked about before each query.
        change: What is done to a query before it is sent, given its number.
    """
    model, threat, attack = trained(), ATTACKS[name].within(INPUTS), find_attack(name)
    names = [f"attempt {next(_ATTEMPTS)}, account {number}" for number in range(accounts)]
    decoys = torch.Generator().manual_seed(1)
    asked = sent = 0

    def service(z: Tensor) -> Tensor:
        nonlocal asked, sent
        if change is not None:
            z = change(z, asked).clamp(0, 1)
        asked += 1
        while names:
            account = names[asked % len(names)]
            batch = torch.cat([torch.rand(hide, *z.shape[1:], generator=decoys), z])
            sent += len(batch)
            if not detector.observe(account, batch).any():
                return model(z)
            names.remove(account)
        raise Caught

    streams = Streams.derive(0, name, torch.zeros(1, dtype=torch.int64))
    options = attack.check({"queries": queries})
    try:
        z = attack.function(service, x, y, threat=threat, streams=streams, **options)
    except Caught:
        return Attempt(sent, caught=True, broken=False)
    within = bool(threat.around(x).contains(z).all())
    return Attempt(sent, caught=False, broken=within and bool((model(z).argmax(1) != y).all()))
