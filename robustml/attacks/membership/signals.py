"""What a membership inference attack looks at: how sure a model is of a label, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...errors import InputError, brief

__all__ = ["Array", "confidence_logit", "log_probability", "losses"]

_MOST = 1e6
Array = np.ndarray[Any, Any]


def confidence_logit(logits: Array, y: Array) -> Array:
    """The log-odds of the label: z_y - logsumexp of the other logits, which is log(p_y / (1 - p_y)).

    Unlike the probability it does not saturate, and it is roughly normal over models (Carlini et al. 2022,
    section IV-C). Computed in float64 from the logits, since 1 - p_y of a sure model is lost in float32.

    Args:
        logits: (n, classes), or (n, classes + 1) of a model that rejects.
        y: Labels int (n,).

    Returns:
        float64 (n,).

    Raises:
        InputError: if an answer holds NaN or no odds can be told.
    """
    z = np.asarray(logits, dtype=np.float64)
    rows = np.arange(len(z))
    own = z[rows, y]
    others = z.copy()
    others[rows, y] = -np.inf
    most = others.max(1, initial=-np.inf)
    shift = np.where(np.isfinite(most), most, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        odds = own - shift - np.log(np.exp(others - shift[:, None]).sum(1))
    if (unknown := np.isnan(odds)).any():
        which = int(unknown.argmax())
        raise InputError(f"the model's answer to sample {which} has no odds: {brief(z[which].tolist())}")
    # Infinite odds would leave nothing to compare with those of another model.
    clipped: Array = odds.clip(-_MOST, _MOST)
    return clipped


def losses(phi: Array) -> Array:
    """The cross-entropy -log p_y, of log-odds (any shape)."""
    return np.logaddexp(0.0, -np.asarray(phi, dtype=np.float64))


def log_probability(phi: Array) -> Array:
    """Logarithm of p_y, of log-odds (any shape)."""
    return -losses(phi)
