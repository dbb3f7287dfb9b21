"""Aggregation rules as Flower strategies: updates in float64, whatever the precision of the model.

This file needs Flower; `robustml.defenses.federated.aggregation` imports it when it is wanted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from ...errors import InputError
from ..privacy.ledger import Ledger
from .dp import ClientPrivacy, epsilon_of, private_rule
from .layout import Layout
from .rules import Mean, Rule, Tolerant

__all__ = ["UpdateStrategy"]


class UpdateStrategy(FedAvg):
    """Moves the model by what a rule makes of the clients' updates.

    Running statistics of batch normalization are averaged like the rest under the mean; every other rule
    takes their median, and every rule the median of whole numbers such as counters.

    Args:
        rule: What makes one update of many.
        privacy: Of whole clients; nothing but the model is published then.
        proximal: The weight with which clients are asked to stay near the model (FedProx: Li et al. 2020).
        options: Those of Flower's FedAvg.

    Raises:
        InputError: for a rule that cannot be made private.
    """

    def __init__(
        self, rule: Rule, *, privacy: ClientPrivacy | None = None, proximal: float = 0.0, **options: Any
    ) -> None:
        super().__init__(
            **{"fraction_evaluate": 0.0, "min_train_nodes": 1, "min_available_nodes": 1, **options}
        )
        self.rule = rule if privacy is None else private_rule(rule, privacy)
        self.privacy = privacy
        self.proximal = proximal
        self.ledger = Ledger()
        self.note = ""
        self._sent: dict[str, Any] = {}
        self._center: np.ndarray[Any, Any] | None = None

    @property
    def private(self) -> bool:
        """Whether whole clients are protected."""
        return self.privacy is not None

    def spent(self) -> tuple[float, float] | None:
        """Epsilon and delta that clients have spent; None without privacy."""
        if self.privacy is None:
            return None
        return epsilon_of(self.ledger.history, self.privacy.delta), self.privacy.delta

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the model out, and remember it."""
        self._sent = {key: value.numpy() for key, value in arrays.items()}
        layout = Layout.of(self._sent)
        if self.private and (layout.statistics or layout.counters):
            raise InputError(
                f"the model has running statistics ({(*layout.statistics, *layout.counters)[0]}), which are "
                "not made private; use a model without batch normalization, such as one with GroupNorm"
            )
        if self.proximal:
            config["proximal-mu"] = self.proximal
        return list(super().configure_train(server_round, arrays, config, grid))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The model, moved; None if it stays, and `note` says why."""
        self.note = ""
        valid, _ = self._check_and_log_replies(list(replies), is_train=True)
        contents = [message.content for message in valid]
        rule = self._rule(len(contents))
        if rule is None:
            return None, None
        states = [
            {key: value.numpy() for key, value in next(iter(content.array_records.values())).items()}
            for content in contents
        ]
        weights = np.array(
            [_weight(content.metric_records.values(), self.weighted_by_key) for content in contents]
        )
        arrays = self._moved(rule, states, weights, server_round)
        metrics = None if self.private else self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        return arrays, metrics

    def _rule(self, clients: int) -> Rule | None:
        """The rule for the replies that there are, if they are enough for one."""
        if self.privacy is not None:
            if clients > self.privacy.clients:
                self.note = f"{clients} updates came, and privacy was promised for {self.privacy.clients}"
                return None
            if not self.privacy.allows(self.ledger):
                self.note = f"the budget epsilon={self.privacy.epsilon:g} does not last for another round"
                return None
            return self.rule if clients else None
        rule = self.rule.at(clients)
        if rule is None:
            self.note = f"{clients} updates are too few for {self.rule.name}"
        elif rule != self.rule and isinstance(rule, Tolerant):
            self.note = (
                f"of {clients} updates {rule.name} bears {rule.hostile} hostile ones, "
                f"not {getattr(self.rule, 'hostile', 0)}"
            )
        return rule

    def _moved(
        self, rule: Rule, states: list[dict[str, Any]], weights: np.ndarray[Any, Any], step: int
    ) -> ArrayRecord:
        layout = Layout.of(self._sent)
        start = layout.flat(self._sent)
        updates = np.stack([layout.flat(state) for state in states]) - start
        center = np.zeros_like(start) if self._center is None else self._center
        if self.privacy is not None:
            # Entered before anything is published, so that no crash in between hides what was spent.
            self.ledger.step(self.privacy.noise_multiplier, 1.0)
            self._center = self.privacy.released(rule, updates, center, step)
            rest: dict[str, Any] = {}
        else:
            self._center = rule.combine(updates, weights, center)
            rest = layout.rest(states, weights if isinstance(rule, Mean) else None)
        learned = layout.shaped(start + self._center)
        return ArrayRecord({key: Array(np.asarray({**learned, **rest}[key])) for key in layout.shapes})

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from round to round."""
        return {"center": self._center, "ledger": self.ledger.to_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Give it back what another one remembered."""
        self._center = state["center"]
        self.ledger = Ledger.from_dict(state["ledger"])


def _weight(records: Iterable[Mapping[str, Any]], key: str) -> float:
    return float(next(iter(records))[key])
