"""Certified radii of the samples of a run: the bound from below, and what attacks have to say about it.

Certificates are drawn before the first attack, for the samples that are classified correctly. Each holds with
a confidence, and all those of a run are to hold together: a tenth of the risk that the run's intervals take
is divided among its samples (Bonferroni), and the interval of the lower bound is as much wider. The price is
small, since a radius depends on the logarithm of the risk.

What an attack breaks within a certified radius is a contradiction, unless it is the luck of the few draws
that vote. So such points are counted again, with as many draws as a certificate.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..balls import TOLERANCE
from ..certificates import ABSTAINED, Certificate, certificate
from ..errors import InputError
from ..inputs import InputSpec
from ..sampling import Streams
from ..threats import Threat
from .attacking import Bench, Limits, Rows
from .folder import Record
from .meter import BudgetSpent
from .plan import Plan, Stage
from .randomized import Randomness, Seeded, take_vote

if TYPE_CHECKING:
    from .curve import Known

__all__ = ["CERTIFYING", "Certified", "certified", "certify", "longest", "recount", "risk_of"]

CERTIFYING = frozenset({"certificate", "contradiction"})
"""The kinds of stages that are carried out here."""

_SHARE = 0.1  # of the risk of the run's intervals
_TOGETHER = 16  # samples between looks at the clock
_BLOCK = 100  # draws of a recount at a time

Array = np.ndarray[Any, Any]


def risk_of(plan: Plan) -> float:
    """How probable it may be that any certificate of a run is wrong."""
    return _SHARE * (1 - plan.confidence)


def longest(threat: Threat, spec: InputSpec) -> float:
    """The largest L2 length of a perturbation within a threat model, in units of the scale.

    Linf: eps on every feature that can change. L2 and L1: eps, since the L1 length is no less than the L2
    length. L0: the full range of so many features, those with the widest ranges.
    """
    low, high, scale = (np.broadcast_to(np.asarray(v), (spec.size,)) for v in (*spec.bounds, spec.scale))
    span = np.delete((high - low) / scale, list(spec.immutable))
    if threat.norm == "l0":
        length = math.sqrt(float(np.square(np.sort(span)[::-1][: int(threat.eps)]).sum()))
    elif threat.norm == "linf":
        length = threat.eps * math.sqrt(len(span))
    else:
        length = threat.eps
    return length * (1 + TOLERANCE)


def certify(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits) -> Record:
    """Certify the correctly classified samples of a chunk; the record holds a label and a radius for each.

    The random numbers of a sample follow from the seed and its id alone.

    Raises:
        BudgetSpent: if the deadline passes.
    """
    cost = bench.plan.suite.certificates.cost
    labels, radii = [], []
    for start in range(0, len(rows.correct), _TOGETHER):
        if limits.deadline is not None and time.monotonic() >= limits.deadline:
            raise BudgetSpent("time")
        found = certified(bench, rows.correct[start : start + _TOGETHER])
        labels += found.label.tolist()
        radii += found.radius.tolist()
        if limits.on_pass is not None:
            limits.on_pass(len(found.label) * cost)
    return Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(labels),
        forward=len(labels) * cost,
        labels=labels,
        radii=radii,
    )


def certified(bench: Bench, positions: Array) -> Certificate:
    """The certificates of some positions of the plan, whichever others there are."""
    plan, settings = bench.plan, bench.plan.suite.certificates
    x, _, ids = bench.batch(positions)
    return certificate(
        bench.model.inner if isinstance(bench.model, Seeded) else bench.model,
        x,
        select=settings.select,
        draws=settings.draws,
        confidence=1 - risk_of(plan) / plan.samples,
        source=Streams.derive(plan.seed, "certificate", ids),
    )


def recount(bench: Bench, stage: Stage, chunk: int, rows: Rows, limits: Limits, known: Known) -> Record:
    """Ask again, with many fresh draws, about the points that broke certified samples within their radius.

    The smoothed classifier is refuted at such a point if the label loses so many draws that its probability
    is not above one half, with the confidence of a certificate.
    """
    from scipy.special import bdtr

    plan, settings = bench.plan, bench.plan.suite.certificates
    x, y, ids = bench.batch(rows.correct)
    z = torch.from_numpy(known.x).to(bench.device)
    scale = plan.spec.like(plan.spec.scale, x.double())
    lengths = ((z.double() - x.double()) / scale).flatten(1).norm(dim=1)
    radius = torch.from_numpy(np.asarray(rows.radius, dtype=np.float64)).to(bench.device)
    inside = (lengths < radius).nonzero()[:, 0]
    x, y, ids, z = x[inside], y[inside], ids[inside], z[inside]
    model = bench.model if isinstance(bench.model, Seeded) else Seeded(bench.model, plan.seed)
    won = torch.zeros(len(z), dtype=torch.float64, device=bench.device)
    for start in range(0, settings.draws, _BLOCK):
        shared = plan.randomness is not None and plan.randomness.shared
        # One draw cannot vote; two of them say as much as two.
        count = max(2, min(_BLOCK, settings.draws - start))
        draw = Randomness(draws=count, shared=shared, foreign=False)
        votes = take_vote(model, z, y, ids, draw, f"{stage.key}/{start}")
        won += (votes.logits.gather(1, y[:, None])[:, 0].double() * count).round()
        if limits.on_pass is not None:
            limits.on_pass(len(z) * count)
    p_value = bdtr(won.cpu().numpy(), settings.draws, 0.5)
    return Record(
        stage=stage.key,
        chunk=chunk,
        attempted=len(rows.correct),
        forward=len(z) * settings.draws,
        facts={
            "within": float(len(z)),
            "refuted": float((p_value < risk_of(plan) / plan.samples).sum()),
        },
    )


class Certified:
    """What the records of the certificates add up to.

    Attributes:
        radius: The certified radius of each sample in L2, in units of the scale: float64 (n,); 0 where the
            certificate is of a wrong label, abstains or is missing.
        abstained: Whether nothing could be certified: bool (n,).
        seen: Whether a certificate was tried: bool (n,).
    """

    def __init__(self, plan: Plan) -> None:
        self._spec = plan.spec
        self.radius = np.zeros(plan.samples, dtype=np.float64)
        self.abstained = np.zeros(plan.samples, dtype=np.bool_)
        self.seen = np.zeros(plan.samples, dtype=np.bool_)

    def covers(self, threat: Threat) -> Array:
        """Whether nothing within a threat model can change the answer for each sample: bool (n,)."""
        within: Array = self.radius > longest(threat, self._spec)
        return within

    def take(self, rows: Rows, record: Record, labels: Array) -> None:
        """Add one record of certificates.

        Raises:
            InputError: if it does not hold a label and a radius for each of its samples.
        """
        positions, said = rows.correct, np.asarray(record.labels, dtype=np.int64)
        radii = np.asarray(record.radii, dtype=np.float64)
        if not len(said) == len(radii) == record.attempted == len(positions) or record.broken:
            raise InputError(f"{record.stage}, chunk {record.chunk} does not hold one radius per sample")
        if not np.isfinite(radii).all() or (radii < 0).any() or (radii[said == ABSTAINED] > 0).any():
            raise InputError(f"{record.stage}, chunk {record.chunk} holds a radius that cannot be")
        self.radius[positions] = np.where(said == labels[positions], radii, 0.0)
        self.abstained[positions] = said == ABSTAINED
        self.seen[positions] = True
