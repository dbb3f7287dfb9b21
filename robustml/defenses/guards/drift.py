"""Whether recent inputs still look like clean ones: exact two-sample tests that share one false-alarm rate.

If nothing changed, the inputs of the window and those of the reference are draws from one distribution, and
each of three tests raises an alarm with a probability of at most a third of `alpha`, whatever that
distribution is: the tests are exact for every number of inputs, and allow for the reference being a sample.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Drift", "Moved", "Seen", "Test", "compare_windows"]

Array = np.ndarray[Any, Any]

REJECTED = -1  # the model or a guard did
REFUSED = -2  # it never became an input

_SHOWN = 20  # features that are named; one is enough for an alarm


@dataclass(frozen=True)
class Seen:
    """What is kept of some inputs.

    Attributes:
        values: Some of their features, float64 (n, k); rows of refused ones are not looked at.
        labels: The predicted class of each, `REJECTED` or `REFUSED`: int64 (n,).
    """

    values: Array
    labels: Array


@dataclass(frozen=True)
class Moved:
    """A feature whose distribution changed.

    Attributes:
        feature: Its flattened index.
        name: Its name, if it has one.
        distance: The largest difference of the two distribution functions.
        p_value: Of the exact two-sample Kolmogorov-Smirnov test, before correction for many features.
    """

    feature: int
    name: str | None
    distance: float
    p_value: float


@dataclass(frozen=True)
class Test:
    """One test.

    Attributes:
        name: "rejections", "classes" or "features".
        p_value: How often it looks at least as strange if nothing changed, at most; corrected for looking at
            several classes or features.
        alarm: Whether that is at most its share of `alpha`.
        says: What it found, in one line.
    """

    name: str
    p_value: float
    alarm: bool
    says: str


@dataclass(frozen=True)
class Drift:
    """Whether a window of inputs differs from the reference.

    Attributes:
        alarm: Whether any test says so.
        alpha: The probability of an alarm if nothing changed, at most, for one look. Who looks m times has
            to expect up to m * alpha false alarms.
        inputs: How many inputs were looked at.
        tests: The three of them.
        moved: The features that changed, strongest first; the first 20 of them.
    """

    alarm: bool
    alpha: float
    inputs: int
    tests: tuple[Test, ...]
    moved: tuple[Moved, ...]

    def __str__(self) -> str:
        verdict = "alarm" if self.alarm else "no alarm"
        lines = "; ".join(test.says for test in self.tests)
        return f"{verdict} at {100 * self.alpha:g} % on {self.inputs} inputs: {lines}"


def compare_windows(
    reference: Seen, window: Seen, alpha: float, classes: int, features: Array, names: tuple[str, ...]
) -> Drift:
    """Compare recent inputs with clean ones.

    Args:
        reference: Clean inputs that were not used to fit anything.
        window: Recent inputs.
        alpha: The false-alarm rate of all tests together.
        classes: The number of classes.
        features: Which features `values` holds, int64 (k,).
        names: What all features are called, or nothing.
    """
    share = alpha / 3
    moved, p_features = _features(reference, window, share, features, names)
    tests = (
        _rejections(reference.labels, window.labels, share),
        _classes(reference.labels, window.labels, share, classes),
        _test("features", p_features, share, _moved(moved)),
    )
    return Drift(any(test.alarm for test in tests), alpha, len(window.labels), tests, moved)


def _moved(moved: tuple[Moved, ...]) -> str:
    if not moved:
        return "features as before"
    first = moved[0].name or f"feature {moved[0].feature}"
    return f"{first} moved" if len(moved) == 1 else f"{first} and {len(moved) - 1} more features moved"


def _test(name: str, p_value: float, share: float, says: str) -> Test:
    return Test(name, p_value, p_value <= share, f"{says} (p = {p_value:.3g})")


def _rejections(reference: Array, window: Array, share: float) -> Test:
    """Fisher's exact one-sided test: more rejections than in the reference."""
    from scipy.stats import hypergeom

    before, now = int((reference < 0).sum()), int((window < 0).sum())
    total = len(reference) + len(window)
    p_value = float(hypergeom.sf(now - 1, total, before + now, len(window))) if now else 1.0
    rates = (100 * now / max(len(window), 1), 100 * before / max(len(reference), 1))
    return _test("rejections", min(p_value, 1.0), share, "{:.2f} % rejected, {:.2f} % before".format(*rates))


def _classes(reference: Array, window: Array, share: float, classes: int) -> Test:
    """Fisher's exact test for each class of those that were accepted, and Bonferroni's correction."""
    from scipy.stats import hypergeom

    before, now = (np.bincount(labels[labels >= 0], minlength=classes) for labels in (reference, window))
    total, drawn = int(before.sum() + now.sum()), int(now.sum())
    if not drawn or not before.sum():
        return _test("classes", 1.0, share, "no accepted inputs to compare")
    both = before + now
    tails = np.minimum(hypergeom.cdf(now, total, both, drawn), hypergeom.sf(now - 1, total, both, drawn))
    worst = int(tails.argmin())
    # Of two classes each says the same about the other.
    looks = classes if classes > 2 else 1
    rates = (100 * now[worst] / drawn, 100 * before[worst] / before.sum())
    says = "class {}: {:.1f} %, {:.1f} % before".format(worst, *rates)
    return _test("classes", min(2 * looks * float(tails[worst]), 1.0), share, says)


def _features(
    reference: Seen, window: Seen, share: float, features: Array, names: tuple[str, ...]
) -> tuple[tuple[Moved, ...], float]:
    """Kolmogorov and Smirnov's exact two-sample test for each feature, and Bonferroni's correction."""
    before, now = (seen.values[seen.labels != REFUSED] for seen in (reference, window))
    if not len(before) or not len(now):
        return (), 1.0
    distances = np.array([_distance(a, b) for a, b in zip(before.T, now.T, strict=True)])
    found: list[Moved] = []
    smallest = 1.0
    # All features have the same numbers of draws, so the largest distance has the smallest p-value.
    for place in np.argsort(-distances, kind="stable")[:_SHOWN].tolist():
        p_value = _p_value(before[:, place], now[:, place])
        smallest = min(smallest, p_value)
        if p_value * len(features) > share:
            break
        feature = int(features[place])
        found.append(Moved(feature, names[feature] if names else None, float(distances[place]), p_value))
    return tuple(found), min(smallest * len(features), 1.0)


def _distance(before: Array, now: Array) -> float:
    """The largest difference of two distribution functions; it lies beside a value of the smaller sample."""
    before, now = np.sort(before), np.sort(now)
    above = np.searchsorted(now, now, side="right") / len(now)
    above -= np.searchsorted(before, now, side="right") / len(before)
    below = np.searchsorted(before, now, side="left") / len(before)
    below -= np.searchsorted(now, now, side="left") / len(now)
    return float(max(above.max(), below.max()))


def _p_value(before: Array, now: Array) -> float:
    """Exact for continuous features, and too large rather than too small where values are equal."""
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        # What is too small for exact arithmetic is approximated, far below any level that matters.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(ks_2samp(before, now, method="exact").pvalue)
