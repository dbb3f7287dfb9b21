"""Membership inference: was a sample in the training data? Pure functions of what models answer."""

from .judging import MembershipResult, Part, Strongest, Subjects, judge, strongest
from .labels import kept_labels, nearby
from .quantiles import learn_quantiles, quantile_scores
from .scores import (
    calibrated_loss,
    exposure,
    gap,
    lira_offline,
    lira_online,
    loss_threshold,
    rmia_log_ratio,
    rmia_offline,
    rmia_online,
)
from .signals import confidence_logit, log_probability, losses
from .statistics import Limits, RateAt, advantage, auc, rate_at, roc, threshold_for

__all__ = [
    "Limits",
    "MembershipResult",
    "Part",
    "RateAt",
    "Strongest",
    "Subjects",
    "advantage",
    "auc",
    "calibrated_loss",
    "confidence_logit",
    "exposure",
    "gap",
    "judge",
    "kept_labels",
    "learn_quantiles",
    "lira_offline",
    "lira_online",
    "log_probability",
    "loss_threshold",
    "losses",
    "nearby",
    "quantile_scores",
    "rate_at",
    "rmia_log_ratio",
    "rmia_offline",
    "rmia_online",
    "roc",
    "strongest",
    "threshold_for",
]
