"""Membership scores: the higher, the more a sample looks like one that the model was trained on.

All of them are functions of log-odds (`confidence_logit`): of the target model, `phi` (n,), and of reference
models, `references` (k, n), with `inside` (k, n) telling which of these was trained on which sample.
"""

from __future__ import annotations

import numpy as np

from ...errors import InputError
from .signals import Array, log_probability, losses

__all__ = [
    "calibrated_loss",
    "exposure",
    "gap",
    "lira_offline",
    "lira_online",
    "loss_threshold",
    "rmia_log_ratio",
    "rmia_offline",
    "rmia_online",
]

_LEAST = 1e-6  # spread in log-odds: models that agree to the last digit tell nothing about chance
FEW = 32  # models on a side below which all samples share one variance: 64 references, half of them in


def gap(correct: Array) -> Array:
    """1 where the model's label is the true one, else 0 (Yeom et al. 2018, adversary 1)."""
    return np.asarray(correct, dtype=np.float64)


def loss_threshold(phi: Array) -> Array:
    """Minus the loss (Yeom et al. 2018, adversary 2).

    The log-odds themselves are returned: they rank samples as minus the loss does, without ties where the
    loss of a sure model rounds to 0.
    """
    return np.asarray(phi, dtype=np.float64)


def calibrated_loss(phi: Array, references: Array, inside: Array) -> Array:
    """How much lower the loss is than its mean over models that never saw the sample (Watson et al. 2022)."""
    return _mean(losses(references), ~_known(references, inside)) - losses(phi)


def lira_offline(phi: Array, references: Array, inside: Array) -> Array:
    """The likelihood ratio attack with models that never saw the sample (Carlini et al. 2022, section VI-A).

    The score of the paper is Pr[N(mu_out, sigma_out) < phi]; its normal quantile is returned, which ranks
    samples in the same way and does not saturate at 1.

    Raises:
        InputError: if a sample has no such model, or there are too few for any variance.
    """
    out = ~_known(references, inside)
    mean, spread = _mean(references, out), _spread(references, out)
    return (np.asarray(phi, dtype=np.float64) - mean) / spread


def lira_online(phi: Array, references: Array, inside: Array) -> Array:
    """The likelihood ratio attack (Carlini et al. 2022, algorithm 1): log N(in) - log N(out).

    With fewer than 32 models on either side of a sample, all samples share one variance per side.

    Raises:
        InputError: if a sample has no model on one side, or there are too few for any variance.
    """
    inside = _known(references, inside)
    value = np.asarray(phi, dtype=np.float64)
    return _log_normal(value, references, inside) - _log_normal(value, references, ~inside)


def rmia_offline(
    phi: Array, references: Array, inside: Array, population: Array, *, a: float = 0.3, gamma: float = 1.0
) -> Array:
    """RMIA with models that never saw the sample (Zarifzadeh et al. 2024).

    p(x) is half of (1 + a) times the mean probability under those models, plus 1 - a. See `rmia_online` for
    what is returned.

    Args:
        phi: Of the target, float (n,).
        references, inside: (k, n).
        population: `rmia_log_ratio` of samples of the population (z,).
        a: How much training on a sample raises a low probability, 0 to 1; 1 for not at all.
        gamma: By what factor a sample must stand out from one of the population.
    """
    return _dominated(rmia_log_ratio(phi, references, inside, a=a), population, gamma)


def rmia_online(
    phi: Array, references: Array, inside: Array, population: Array, *, gamma: float = 1.0
) -> Array:
    """RMIA (Zarifzadeh et al. 2024): the share of the population that a sample stands out from.

    p(x) is the mean probability over models that saw the sample and as many that did not. Among samples that
    stand out from the same number the likelihood ratio decides, so that there are no ties. The share rises
    with the ratio, hence with ties broken in this way neither the population nor gamma changes the order of
    the samples; they give the scores a scale.
    """
    return _dominated(rmia_log_ratio(phi, references, inside), population, gamma)


def rmia_log_ratio(phi: Array, references: Array, inside: Array, *, a: float | None = None) -> Array:
    """log(p(x | target) / p(x)) (n,): offline with an `a`, online without.

    Raises:
        InputError: if a sample has no reference model of the kind that this needs.
    """
    inside, log_p = _known(references, inside), log_probability(references)
    log_out = _log_mean(log_p, ~inside)
    if a is None:
        prior = np.logaddexp(_log_mean(log_p, inside), log_out) - np.log(2.0)
    elif 0 <= a <= 1:
        prior = np.log(((1 + a) * np.exp(log_out) + (1 - a)) / 2)
    else:
        raise InputError(f"a={a!r} is not from 0 to 1")
    ratio: Array = log_probability(phi) - prior
    return ratio


def exposure(references: Array, inside: Array) -> Array:
    """How exposed samples are, going by the reference models alone: the target's own answers play no part.

    By how much training on a sample raises its log-odds; where no reference was trained on any sample of the
    set, how hard the samples are for models that never saw them.

    Returns:
        float64 (n,), the most exposed highest.
    """
    inside = _known(references, inside)
    if not inside.any():
        return -_mean(references, ~inside)
    return _mean(references, inside) - _mean(references, ~inside)


def _known(references: Array, inside: Array) -> Array:
    inside = np.asarray(inside, dtype=bool)
    if inside.shape != references.shape:
        raise InputError(f"inside has shape {inside.shape}; the references have {references.shape}")
    return inside


def _mean(values: Array, chosen: Array) -> Array:
    mean: Array = np.where(chosen, values, 0.0).sum(0) / _some(chosen)
    return mean


def _some(chosen: Array) -> Array:
    """How many models each sample has, at least one."""
    counts: Array = chosen.sum(0)
    if (counts == 0).any():
        which = int((counts == 0).argmax())
        raise InputError(f"sample {which} has no reference model of the kind that the attack needs")
    return counts


def _log_mean(values: Array, chosen: Array) -> Array:
    """The logarithm of the mean of exp over the chosen models (n,)."""
    _some(chosen)
    seen = np.where(chosen, values, -np.inf)
    top = seen.max(0)
    mean: Array = np.log(_mean(np.exp(seen - top), chosen)) + top
    return mean


def _spread(values: Array, chosen: Array) -> Array:
    """The standard deviation over the chosen models: of each sample, or one for all where models are few."""
    counts = chosen.sum(0)
    squares = np.where(chosen, (values - _mean(values, chosen)) ** 2, 0.0).sum(0)
    if counts.min() >= FEW:
        each: Array = np.maximum(np.sqrt(squares / (counts - 1)), _LEAST)
        return each
    free = (counts - 1).sum()
    if free == 0:
        # With one model each, the spread over samples is all there is; one for all, so that it ranks nothing.
        return np.ones(values.shape[1])
    return np.full(values.shape[1], max(np.sqrt(squares.sum() / free), _LEAST))


def _log_normal(value: Array, references: Array, chosen: Array) -> Array:
    spread = _spread(references, chosen)
    density: Array = -0.5 * ((value - _mean(references, chosen)) / spread) ** 2 - np.log(spread)
    return density


def _dominated(ratio: Array, population: Array, gamma: float) -> Array:
    """The share of the population whose ratio times gamma is at most this one's, ties broken by the ratio."""
    if not gamma >= 1:
        raise InputError(f"gamma={gamma!r} is not at least 1")
    if not len(population):
        raise InputError("population is empty; RMIA compares with at least one sample of it")
    levels = np.sort(np.asarray(population, dtype=np.float64) + np.log(gamma))
    share = np.searchsorted(levels, ratio, side="right")
    # Strictly rising and within (0, 1), so that it decides among equals alone.
    within = 0.5 + np.arctan(ratio) / np.pi
    score: Array = (share + within) / (len(levels) + 1)
    return score
