"""What a client does with the weights that it is sent: it trains them on its own data, by the usual loop."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...data import Dataset
from ...wrapping import pick_device
from ..training.hardening import harden
from ..training.objective import Objective, Term
from ..training.validation import accuracies

__all__ = ["Client", "Proximal", "derived_seed"]


@dataclass(frozen=True)
class Client:
    """One owner of data.

    Attributes:
        model: The architecture; the weights come from the server each round, and these stay as they are.
        data: What it has, and tells nobody.
        objective: What it minimises; cross-entropy if None.
        terms: What is added to that.
        settings: Of the training between two rounds (see `robustml.defenses.training.Settings`).
        seed: Of the whole federation; every client and round draws its own numbers.
        device: Where it trains.
    """

    model: Classifier
    data: Dataset
    objective: Objective | None = None
    terms: tuple[Term, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"

    def train(
        self, weights: Mapping[str, Tensor], *, round_: int, partition: int, mu: float = 0.0
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Train on its data from the weights of the server.

        Args:
            weights: The state of the module, by name.
            round_: The number of the round, from 1.
            partition: The number of the client.
            mu: Of the proximal term that FedProx asks for (Li et al. 2020, equation 2); 0 for none.

        Returns:
            The state of the module afterwards, and figures about the training.
        """
        model = self._loaded(weights)
        terms: Sequence[Term] = self.terms
        if mu:
            terms = (*terms, Proximal(mu, [value.detach().clone() for value in model.module.parameters()]))
        done = harden(
            model,
            self.data,
            objective=self.objective,
            terms=terms,
            validation=None,
            device=self.device,
            partial=True,
            **{"schedule": "constant", "optimizer": "sgd", "epochs": 1, **self.settings},
            keep="last",
            seed=derived_seed(self.seed, round_, partition),
        )
        last = done.history[-1]
        state = {key: value.detach().cpu() for key, value in model.module.state_dict().items()}
        return state, {"num-examples": len(self.data), "loss": last.loss, "accuracy": last.accuracy}

    def evaluate(self, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """How well the weights of the server do on its data: figures."""
        model = self._loaded(weights)
        device = pick_device(self.device)
        x, y = torch.from_numpy(self.data.x), torch.from_numpy(self.data.y)
        clean, _ = accuracies(model.to(device).eval(), x, y, (), self.seed, device)
        return {"num-examples": len(self.data), "accuracy": clean}

    def _loaded(self, weights: Mapping[str, Tensor]) -> Classifier:
        model = copy.deepcopy(self.model)
        model.module.load_state_dict(dict(weights))
        return model


class Proximal(Term):
    """Half the squared distance of the weights to those that the round began with (Li et al. 2020).

    Args:
        weight: What FedProx calls mu.
        start: The parameters of the module, in its order.
    """

    name = "proximal"

    def __init__(self, weight: float, start: Sequence[Tensor]) -> None:
        self.weight = weight
        self._start = start

    def penalty(self, module: nn.Module) -> Tensor:
        """See `Term.penalty`."""
        pairs = zip(module.parameters(), self._start, strict=True)
        distances = [(now - start.to(now.device)).square().sum() for now, start in pairs if now.requires_grad]
        return torch.stack(distances).sum() / 2


def derived_seed(seed: int, *key: object) -> int:
    """A seed of 63 bits for one part of a run, which says nothing about the others'."""
    text = "/".join(map(str, ("federated", seed, *key)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
