"""Aggregators by name: rules of ours on updates in float64, and Flower's own strategies as they are."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from typing import Any

from ...errors import InputError, brief, suggest
from .dp import ClientPrivacy
from .environment import flower, quiet
from .rules import RULES, Rule

__all__ = ["AGGREGATORS", "aggregation", "rule_of"]

_FLOWER: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("FedAvg", {}),
    "fedavgm": ("FedAvgM", {"server_momentum": 0.9}),
    "fedprox": ("FedProx", {"proximal_mu": 0.1}),
    "fedadagrad": ("FedAdagrad", {}),
    "fedadam": ("FedAdam", {}),
    "fedyogi": ("FedYogi", {}),
    "fedmedian": ("FedMedian", {}),
    "fedtrimmedavg": ("FedTrimmedAvg", {}),
    "flower-krum": ("Krum", {"num_malicious_nodes": 1}),
    "flower-multi-krum": ("MultiKrum", {"num_malicious_nodes": 1, "num_nodes_to_select": 3}),
    "flower-bulyan": ("Bulyan", {"num_malicious_nodes": 1}),
}

AGGREGATORS: tuple[str, ...] = (*RULES, *_FLOWER)
"""The names of all aggregators."""


def aggregation(name: str | Rule, *, privacy: ClientPrivacy | None = None, **options: Any) -> Any:
    """A Flower strategy by name; wrap it into `Guarded` before strangers may answer.

    Rules of ours work on updates, in float64: mean, median, trimmed-mean, norm-bounding, geometric-median,
    centered-clipping, krum, multi-krum, bulyan, nearest-neighbor-mixing. Flower's own are fedavg, fedavgm,
    fedprox, fedadagrad, fedadam, fedyogi, fedmedian, fedtrimmedavg, and, to compare with, flower-krum,
    flower-multi-krum and flower-bulyan. Flower's Krum computes distances of the parameters themselves, in
    their own precision, from products that cancel, which puts them in a wrong order once the model is larger
    than its updates; and its Bulyan selects all at once what the paper selects one by one.

    Args:
        name: One of `AGGREGATORS`, or a rule.
        privacy: Differential privacy for whole clients, with rules of which a sensitivity is known.
        options: Of the rule (such as `hostile`), `proximal`, and those of Flower's FedAvg; or of Flower's
            strategy.

    Raises:
        InputError: for a name or an option that is not known, and for a rule that cannot be made private.
    """
    flower()
    from .strategies import UpdateStrategy

    if isinstance(name, Rule) or name in RULES:
        kind = name if isinstance(name, Rule) else RULES[name]
        own = {field.name for field in dataclasses.fields(kind)}
        more = {key: options.pop(key) for key in list(options) if key not in own}
        _known(more, {"proximal", *_parameters(UpdateStrategy.__mro__[1])} | own, str(name))
        rule = dataclasses.replace(name, **options) if isinstance(name, Rule) else rule_of(name, **options)
        with quiet():
            return UpdateStrategy(rule, privacy=privacy, **more)
    if name not in _FLOWER:
        raise InputError(f"aggregation={brief(name)} is not known{suggest(str(name), AGGREGATORS)}")
    if privacy is not None:
        raise InputError(
            f"{name} cannot be made private: its sensitivity is not known; take a rule such as mean"
        )
    from flwr.serverapp import strategy

    class_name, usual = _FLOWER[name]
    made = getattr(strategy, class_name)
    _known(options, _parameters(made), name)
    common = {"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1}
    try:
        with quiet():
            return made(**{**common, **usual, **options})
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: {error}") from None


def rule_of(name: str, **options: Any) -> Rule:
    """An aggregation rule by name, without Flower.

    Raises:
        InputError: for a name or an option that is not known.
    """
    if name not in RULES:
        raise InputError(f"aggregation={brief(name)} is not a rule{suggest(str(name), RULES)}")
    kind = RULES[name]
    _known(options, {field.name for field in dataclasses.fields(kind)}, name)
    if isinstance(options.get("then"), str):
        options["then"] = rule_of(options["then"])
    return kind(**options)


def _known(given: Iterable[str], known: Iterable[str], name: str) -> None:
    known = set(known)
    for key in given:
        if key not in known:
            raise InputError(f"{key} is not an option of {name}{suggest(key, known)}")


def _parameters(kind: Any) -> set[str]:
    """The options of a class of Flower's, which are named in its own constructor and those of its bases."""
    return {
        key
        for base in kind.__mro__
        if "__init__" in vars(base)
        for key, parameter in inspect.signature(vars(base)["__init__"]).parameters.items()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY} and key != "self"
    }
