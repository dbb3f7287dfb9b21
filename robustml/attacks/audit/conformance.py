"""Does a run of private training do what its accountant was told? What phantom canaries saw tells.

A phantom canary is a sample whose gradient lies on a coordinate of its own that no other data touch. After
each step, before the division by the batch size, its coordinate holds noise, and a gradient of the clipping
norm if the sampler drew it; that of a canary which is not in the data holds noise alone. So noise, sampling
rate and clipping norm can be measured, and so can whether draws and noise are independent, on which every
accountant counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError, brief
from .fdp import fdp_one_run
from .guessing import AuditedEpsilon
from .mixture import Fit, fit
from .one_run import one_run
from .suspicion import Suspicion, suspicions

__all__ = ["Check", "Claims", "Conformance", "Parameter", "canary_scores", "conformance", "phantom_epsilon"]

Array = np.ndarray[Any, Any]

_FEWEST = 8
# A logarithm that is known no better than this has no interval worth showing, nor one that holds.
_BLURRED = 0.35
# Without noise everything is known to the last digit, of which gradients in single precision have few.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Claims:
    """What the accountant was told.

    Attributes:
        noise_multiplier: Standard deviation of the noise in units of the clipping norm.
        clipping_norm: The most that one sample may contribute to the summed gradient, in the Euclidean norm.
        sampling_rate: How probable it is that a sample is drawn at a step.
        steps: How many steps there were.
    """

    noise_multiplier: float
    clipping_norm: float
    sampling_rate: float
    steps: int

    def __post_init__(self) -> None:
        for name in ("noise_multiplier", "clipping_norm"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InputError(f"{name}={brief(value)} is not a number above 0")
        if not 0 < self.sampling_rate < 1:
            raise InputError(f"sampling_rate={brief(self.sampling_rate)} is not between 0 and 1")
        if self.steps < 1:
            raise InputError(f"steps={brief(self.steps)} is below 1")

    @property
    def noise(self) -> float:
        """The standard deviation of the noise."""
        return self.noise_multiplier * self.clipping_norm


@dataclass(frozen=True)
class Parameter:
    """What was measured of one of the claims.

    Attributes:
        name: As in `Claims`.
        claimed: What the accountant was told.
        value, low, high: The estimate and its interval; None where it cannot be resolved.
        confidence: Of the interval.
        reason: Why there is none; empty otherwise.
    """

    name: str
    claimed: float
    value: float | None
    low: float | None
    high: float | None
    confidence: float
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """One test of the claims.

    Attributes:
        name: Of the test.
        passed: Whether what was seen agrees with the claims.
        p_value: Adjusted for the number of tests (Holm 1979): below 1 - confidence if it failed.
        fault: What it is there to find.
        power: How probable it was that such a fault would be found.
        reason: What cannot be found with so few canaries and steps; empty if the fault would be.
    """

    name: str
    passed: bool
    p_value: float
    fault: str
    power: float
    reason: str = ""


@dataclass(frozen=True)
class Conformance:
    """The verdict.

    Attributes:
        passed: Whether every check was; where something is `unresolved`, that says less.
        unresolved: The checks that could hardly have found their fault.
        checks: All of them.
        parameters: Noise multiplier, clipping norm and sampling rate, as measured.
        claims: What they are held against.
        canaries: How many there were.
        included: Of these, how many were in the data.
        confidence: At least this share of faultless runs passes.
    """

    passed: bool
    unresolved: tuple[str, ...]
    checks: tuple[Check, ...]
    parameters: tuple[Parameter, ...]
    claims: Claims
    canaries: int
    included: int
    confidence: float

    @property
    def failed(self) -> tuple[str, ...]:
        """The names of the checks that failed."""
        return tuple(check.name for check in self.checks if not check.passed)

    def __str__(self) -> str:
        verdict = f"failed: {', '.join(self.failed)}" if not self.passed else "as claimed"
        blind = f"; not resolvable: {', '.join(self.unresolved)}" if self.unresolved else ""
        return f"{verdict}{blind}"


def conformance(
    seen: Any, included: Any, claims: Claims, *, samples: int | None = None, confidence: float = 0.99
) -> Conformance:
    """Hold what phantom canaries saw against what the accountant was told.

    Args:
        seen: The coordinate of each canary after each step, (steps, canaries): the summed gradient with its
            noise, not yet divided by the batch size.
        included: Which canaries are in the data, bool (canaries,).
        claims: What the accountant was told.
        samples: How many samples the sampler chooses from, canaries included: batches of a fixed size can be
            found only if canaries are a good part of them.
        confidence: At least this share of faultless runs passes all checks together; also that of each
            parameter's interval.

    Raises:
        InputError: for arguments that do not fit, or too few canaries of either kind.
    """
    cells, coins = _checked(seen, included)
    if not 0 < confidence < 1:
        raise InputError(f"confidence={brief(confidence)} is outside (0, 1)")
    inside, outside = cells[:, coins], cells[:, ~coins]
    level = 1 - confidence
    found = suspicions(
        inside / claims.clipping_norm,
        outside / claims.clipping_norm,
        noise=claims.noise_multiplier,
        rate=claims.sampling_rate,
        samples=samples,
        level=level,
    )
    steps = len(cells)
    told = Check(
        "steps",
        steps == claims.steps,
        float(steps == claims.steps),
        f"{claims.steps} steps accounted for and {steps} made",
        1.0,
    )
    checks = (told, *_holm(found, level))
    return Conformance(
        all(check.passed for check in checks),
        tuple(check.name for check in checks if check.reason),
        checks,
        _parameters(inside, outside, claims, confidence),
        claims,
        len(coins),
        int(coins.sum()),
        confidence,
    )


def _checked(seen: Any, included: Any) -> tuple[Array, Array]:
    cells, coins = np.asarray(seen, dtype=np.float64), np.asarray(included)
    if cells.ndim != 2 or coins.shape != cells.shape[1:] or coins.dtype != np.bool_ or not len(cells):
        raise InputError(
            f"seen of shape {cells.shape} and included of shape {coins.shape} and type {coins.dtype}: "
            "give one row per step with one number per canary, and True or False per canary"
        )
    if not np.isfinite(cells).all():
        raise InputError("seen holds NaN or infinity: the run itself has failed")
    count = int(coins.sum())
    if min(count, len(coins) - count) < _FEWEST:
        raise InputError(
            f"{count} of {len(coins)} canaries are included; {_FEWEST} at least are to be in, and out"
        )
    return cells, coins


def _holm(found: tuple[Suspicion, ...], level: float) -> tuple[Check, ...]:
    order = np.argsort([one.p_value for one in found], kind="stable")
    adjusted, worst = np.empty(len(found)), 0.0
    for place, which in enumerate(order):
        worst = max(worst, min((len(found) - place) * found[which].p_value, 1.0))
        adjusted[which] = worst
    return tuple(
        Check(one.name, bool(p >= level), float(p), one.fault, one.power, one.reason)
        for one, p in zip(found, adjusted, strict=True)
    )


def _parameters(inside: Array, outside: Array, claims: Claims, confidence: float) -> tuple[Parameter, ...]:
    from scipy.special import expit, logit, ndtri

    found = fit(inside, outside, rate=claims.sampling_rate, norm=claims.clipping_norm)
    reach = float(ndtri((1 + confidence) / 2))
    spread = found.covariance
    ratio = spread[2, 2] + spread[1, 1] - 2 * spread[1, 2]
    rows = (
        ("noise_multiplier", claims.noise_multiplier, found.noise / found.norm, ratio),
        ("clipping_norm", claims.clipping_norm, found.norm, spread[1, 1]),
    )
    blurred = _blurred(found, inside.size)
    if not outside.any():
        # The fit needs some noise to divide by.
        rows = ((rows[0][0], rows[0][1], 0.0, ratio), rows[1])
    measured = []
    for name, claimed, value, variance in rows:
        width = math.exp(reach * math.sqrt(variance) + _ROUNDING) if not blurred else 1.0
        measured.append(_parameter(name, claimed, value, value / width, value * width, confidence, blurred))
    center, width = float(logit(found.rate)), reach * math.sqrt(spread[0, 0])
    low, high = float(expit(center - width)), float(expit(center + width))
    rate = claims.sampling_rate
    measured.append(_parameter("sampling_rate", rate, found.rate, low, high, confidence, blurred))
    return tuple(measured)


def _parameter(
    name: str, claimed: float, value: float, low: float, high: float, confidence: float, blurred: str
) -> Parameter:
    if blurred:
        return Parameter(name, claimed, None, None, None, confidence, blurred)
    return Parameter(name, claimed, value, low, high, confidence)


def _blurred(found: Fit, cells: int) -> str:
    """Why rate and norm cannot be told apart, if they cannot."""
    worst = math.sqrt(max(found.covariance[0, 0], found.covariance[1, 1], 0.0))
    if math.isfinite(worst) and worst <= _BLURRED and found.norm > 0:
        return ""
    draws = found.rate * cells
    return (
        f"not resolvable: about {draws:.0f} draws were seen through noise of {found.noise / found.norm:.2g} "
        "clipping norms; take more canaries, more steps, or less noise"
    )


def canary_scores(seen: Any, claims: Claims) -> Array:
    """How much more probable each canary's coordinate is if it is in the data: log likelihood ratios (m,).

    Args:
        seen: As for `conformance`.
        claims: What the accountant was told.
    """
    cells = np.asarray(seen, dtype=np.float64) / claims.clipping_norm
    ratio = (cells - 0.5) / claims.noise_multiplier**2
    q = claims.sampling_rate
    return np.asarray(np.logaddexp(math.log1p(-q), math.log(q) + ratio).sum(0))


def phantom_epsilon(
    seen: Any,
    included: Any,
    claims: Claims,
    *,
    delta: float = 1e-5,
    confidence: float = 0.95,
    gaussian: bool = False,
) -> AuditedEpsilon:
    """Audit epsilon from below by what phantom canaries saw.

    Args:
        seen, included: As for `conformance`; fair and independent coins must have decided.
        claims: What the accountant was told: it weighs what was seen, and the bound holds if it is wrong.
        delta: Of the guarantee.
        confidence: The least share of audits whose bound holds.
        gaussian: Whether to assume a Gaussian trade-off (`fdp_one_run`), which shows more.

    Raises:
        InputError: for arguments that do not fit, or coins that cannot have been fair.
    """
    audit = fdp_one_run if gaussian else one_run
    return audit(canary_scores(seen, claims), included, delta=delta, confidence=confidence)
