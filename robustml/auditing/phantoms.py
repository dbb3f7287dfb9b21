"""Phantom canaries in a real run of private training: is it what its accountant was told?

The model gets a block of weights, one per canary, which adds nothing to any prediction. A canary is a sample
whose loss is its weight alone, many times over: its gradient lies on that weight, and no other sample's does.
The run is that of `harden`, with its sampler, its gradients, its clipping and its noise; only the rows of the
canaries, and the weights that see them, are added.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..attacks.audit import AuditedEpsilon, Claims, Conformance, conformance, phantom_epsilon
from ..classifier import Classifier
from ..data import Dataset, choose
from ..defenses.privacy import DifferentialPrivacy, Guarantee
from ..defenses.training import Objective, Standard, Term, harden
from ..defenses.training.objective import Answers, Batch
from ..errors import InputError, brief
from ..inputs import InputSpec
from ..threats import Threat
from .admitting import admitted

__all__ = ["PhantomAudit", "audit_training"]

Array = np.ndarray[Any, Any]

# Canaries have gradients of so many clipping norms, so that a clip that is left out shows.
_LOUD = 10.0
_NOISE, _RATE = 0.3, 0.1


@dataclass(frozen=True)
class PhantomAudit:
    """What phantom canaries saw of a run.

    Attributes:
        conformance: Whether the run did what its accountant was told.
        epsilon: A lower bound without assumptions on the training.
        gaussian: A lower bound that assumes a Gaussian trade-off: higher.
        accounted: What the accountant says of the same run: the upper bound is its epsilon.
        seconds: Of the whole.
    """

    conformance: Conformance
    epsilon: AuditedEpsilon
    gaussian: AuditedEpsilon
    accounted: Guarantee
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether it conforms, and the lower bound without assumptions is below the accounted epsilon."""
        limit = math.inf if self.accounted.epsilon is None else self.accounted.epsilon
        return self.conformance.passed and (self.epsilon.epsilon or 0.0) <= limit


def audit_training(
    model: nn.Module | Classifier,
    data: Any,
    *,
    privacy: DifferentialPrivacy | None = None,
    objective: Objective | None = None,
    terms: Sequence[Term] = (),
    inputs: InputSpec | None = None,
    canaries: int = 500,
    samples: int | None = 40,
    epochs: int = 16,
    batch_size: int | None = None,
    confidence: float = 0.99,
    seed: int = 0,
    **settings: Any,
) -> PhantomAudit:
    """Train a copy of a model privately, with phantom canaries in the data, and judge what they saw.

    As it stands, it tests the training loop: few samples, little noise and many draws, so that every fault
    that the checks are made for would be found in some seconds. Given the privacy, samples and settings of a
    real run it audits that one, and says what cannot be resolved.

    Args:
        model: A `Classifier`, or a module whose input space and classes are inferred; it is left as it is.
        data: A pair (x, y), or a `Dataset`.
        privacy: Of the run. None for a noise multiplier of 0.3.
        objective, terms, inputs: As for `harden`.
        canaries: How many; each is in the data if its coin says so.
        samples: How many rows of the data train beside them; None for all. Batches of a fixed size can be
            found only while canaries are most of the data.
        epochs: Of the run; each has as many steps as batches would be needed.
        batch_size: The expected one; None for a sampling rate of one tenth.
        confidence: At least this share of faultless runs passes the conformance checks; lower bounds of
            epsilon hold at 95 %.
        seed: Of the coins, the choice of rows, and the run; not of the privacy, which has its own.
        settings: Other settings of `harden`.

    Raises:
        InputError: for something that cannot be used.
        RunError: if the run fails.
    """
    begun = time.perf_counter()
    classifier, known = admitted(model, data, inputs, settings)
    asked = DifferentialPrivacy(noise_multiplier=_NOISE) if privacy is None else privacy
    if asked.noise_multiplier == 0:
        raise InputError("privacy without noise claims nothing that an audit could check")
    if samples is not None and samples < len(known):
        kept = choose(known.y, samples, "stratified", seed)
        known = Dataset(known.x[kept], known.y[kept])
    included = _coins(canaries, seed)
    train, places = _mixed(known, included, seed)
    haunted = _with_phantoms(classifier, canaries)
    rows: list[Array] = []
    bound = _Haunting(objective or Standard(), torch.from_numpy(places), _LOUD * asked.clipping_norm)
    done = harden(
        haunted,
        (train.x, train.y),
        objective=bound,
        terms=[_Spared(term, torch.from_numpy(places), term.weight) for term in terms],
        privacy=dataclasses.replace(asked, observer=_recording(rows, asked.observer)),
        epochs=epochs,
        batch_size=max(1, round(_RATE * len(train))) if batch_size is None else batch_size,
        seed=seed,
        **settings,
    )
    accounted = done.privacy
    assert accounted is not None
    claims = Claims(
        accounted.noise_multiplier, accounted.clipping_norm, accounted.sampling_rate, accounted.steps
    )
    seen = np.stack(rows)
    return PhantomAudit(
        conformance(seen, included, claims, samples=len(train), confidence=confidence),
        phantom_epsilon(seen, included, claims, delta=accounted.delta),
        phantom_epsilon(seen, included, claims, delta=accounted.delta, gaussian=True),
        accounted,
        round(time.perf_counter() - begun, 3),
    )


def _coins(canaries: int, seed: int) -> Array:
    if isinstance(canaries, bool) or not isinstance(canaries, int) or canaries < 1:
        raise InputError(f"canaries={brief(canaries)} is not a whole number of at least 1")
    return np.random.default_rng([seed, 1]).random(canaries) < 0.5


def _mixed(known: Dataset, included: Array, seed: int) -> tuple[Dataset, Array]:
    """The data with the included canaries in it, in an order of chance, and which canary each row is.

    A canary's input and label are those of some sample: its loss makes nothing of them.

    Returns:
        The data, and the place of each row's weight in the block, int64 (n,), -1 for a real sample.
    """
    places = np.concatenate([np.full(len(known), -1), np.flatnonzero(included)])
    rows = np.concatenate([np.arange(len(known)), np.arange(int(included.sum())) % len(known)])
    order = np.random.default_rng([seed, 2]).permutation(len(rows))
    return Dataset(known.x[rows[order]], known.y[rows[order]]), places[order]


class _Phantoms(nn.Module):
    """A network, and beside it the weights that canaries see: at zero, and in none of its answers."""

    def __init__(self, net: nn.Module, canaries: int) -> None:
        super().__init__()
        self.net = net
        self.phantom = nn.Linear(canaries, 1, bias=False)
        nn.init.zeros_(self.phantom.weight)

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


def _with_phantoms(model: Classifier, canaries: int) -> Classifier:
    net = copy.deepcopy(model.module)
    weight = next((p for p in net.parameters() if p.requires_grad), None)
    if weight is None:
        raise InputError("the model has no weights to train")
    module = _Phantoms(net, canaries).to(weight.device, weight.dtype)
    return Classifier(module, inputs=model.inputs, classes=model.classes, outputs=model.outputs)


def _recording(rows: list[Array], also: Any) -> Any:
    """Keep what the block holds at each step."""

    def record(sums: dict[str, Tensor]) -> None:
        (block,) = (value for name, value in sums.items() if name.endswith("module.phantom.weight"))
        rows.append(block.detach().flatten().cpu().double().numpy())
        if also is not None:
            also(sums)

    return record


def _canary_of(batch: Batch, places: Tensor) -> Tensor:
    """Which canary each sample is, -1 for none: int64 (n,), on the device of the batch."""
    # The probe that settles the mode asks with ids of its own, possibly more than there are samples.
    return places.to(batch.x.device)[batch.ids.to(batch.x.device) % len(places)]


@dataclass(frozen=True, eq=False)
class _Haunting(Objective):
    """An objective for real samples; for canaries, their own weight times how loud they are."""

    inner: Objective
    places: Tensor
    loud: float

    name = "phantoms"

    @property
    def threats(self) -> tuple[Threat, ...]:
        return self.inner.threats

    @property
    def replays(self) -> int:
        return self.inner.replays

    @property
    def follows(self) -> bool:
        return self.inner.follows

    def within(self, inputs: InputSpec) -> Objective:
        return dataclasses.replace(self, inner=self.inner.within(inputs))

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        return self.inner.craft(model, batch)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        canary = _canary_of(batch, self.places)
        block = ask.model.module.phantom
        assert isinstance(block, nn.Linear)
        own = canary[:, None] == torch.arange(block.in_features, device=canary.device)
        said: Tensor = block(own.to(block.weight.dtype))[:, 0]
        return self.inner.losses(ask, batch, z) * (canary < 0) + self.loud * said

    def check(self, model: Classifier) -> None:
        self.inner.check(model)


@dataclass(frozen=True, eq=False)
class _Spared(Term):
    """A term that has nothing to say of canaries."""

    inner: Term
    places: Tensor
    weight: float

    name = "spared"

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor | None:
        value = self.inner.losses(ask, batch, z)
        return None if value is None else value * (_canary_of(batch, self.places) < 0)

    def penalty(self, module: nn.Module) -> Tensor | None:
        assert isinstance(module, _Phantoms)
        return self.inner.penalty(module.net)
