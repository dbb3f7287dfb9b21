"""What a client does with the weights that it is sent: it trains them on its own data, by the usual loop."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...classifier import Classifier
from ...data import Dataset
from ...wrapping import pick_device
from ..privacy.ledger import Ledger, noise_for
from ..privacy.settings import DifferentialPrivacy
from ..training.hardening import harden
from ..training.objective import Objective, Term
from ..training.settings import Settings
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
        privacy: Differential privacy for its samples over all rounds together; None for none.
        rounds: How many rounds it expects: noise is chosen so that an `epsilon` lasts for them. In a further
            round it takes no part.
    """

    model: Classifier
    data: Dataset
    objective: Objective | None = None
    terms: tuple[Term, ...] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    device: str = "cpu"
    privacy: DifferentialPrivacy | None = None
    rounds: int = 1

    def train(
        self,
        weights: Mapping[str, Tensor],
        *,
        round_: int,
        partition: int,
        mu: float = 0.0,
        ledger: Ledger | None = None,
        mode: str | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Train on its data from the weights of the server.

        Args:
            weights: The state of the module, by name.
            round_: The number of the round, from 1.
            partition: The number of the client.
            mu: Of the proximal term that FedProx asks for (Li et al. 2020, equation 2); 0 for none.
            ledger: What its privacy has cost until now; it is continued, in place.
            mode: How private gradients were taken in an earlier round, if there was one.

        Returns:
            The state of the module afterwards, and figures about the training. With privacy, these are the
            number of samples, which counts as public, the ledger's epsilon, and the mode, which the client
            keeps: the loss is not protected.

        Raises:
            InputError, RunError: as `harden`.
        """
        model = self._loaded(weights)
        terms: Sequence[Term] = self.terms
        if mu:
            terms = (*terms, Proximal(mu, [value.detach().clone() for value in model.module.parameters()]))
        settings = {"schedule": "constant", "optimizer": "sgd", "epochs": 1, **self.settings}
        privacy = None
        if self.privacy is not None:
            # A client may have fewer samples than others, and fewer than a batch.
            settings["batch_size"] = min(settings.get("batch_size", Settings.batch_size), len(self.data))
            privacy = self._private(self.privacy, settings, round_, partition, mode)
        done = harden(
            model,
            self.data,
            objective=self.objective,
            terms=terms,
            validation=None,
            device=self.device,
            partial=True,
            privacy=privacy,
            ledger=ledger,
            **settings,
            keep="last",
            seed=derived_seed(self.seed, round_, partition),
        )
        state = {key: value.detach().cpu() for key, value in model.module.state_dict().items()}
        figures: dict[str, Any] = {"num-examples": len(self.data)}
        if done.privacy is None:
            last = done.history[-1]
            return state, {**figures, "loss": last.loss, "accuracy": last.accuracy}
        figures["mode"] = done.privacy.mode
        if done.privacy.epsilon is not None:
            figures |= {"epsilon": done.privacy.epsilon, "delta": done.privacy.delta}
        return state, figures

    def _private(
        self,
        privacy: DifferentialPrivacy,
        settings: Mapping[str, Any],
        round_: int,
        partition: int,
        mode: str | None,
    ) -> DifferentialPrivacy:
        """What is asked of one round, so that all of them together spend what they may."""
        size = settings["batch_size"]
        steps = self.rounds * settings["epochs"] * math.ceil(len(self.data) / size)
        changes: dict[str, Any] = {"mode": mode or privacy.mode}
        if privacy.epsilon is not None:
            noise = _noise(privacy.epsilon, privacy.delta, size / len(self.data), steps)
            changes |= {"epsilon": None, "noise_multiplier": noise, "max_epsilon": privacy.epsilon}
        if privacy.seed is not None:
            # The same noise in two rounds, or at two clients, would cancel.
            changes["seed"] = derived_seed(privacy.seed, "privacy", round_, partition)
        return dataclasses.replace(privacy, **changes)

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


@functools.lru_cache(maxsize=256)
def _noise(epsilon: float, delta: float, rate: float, steps: int) -> float:
    return noise_for(Ledger(), epsilon=epsilon, delta=delta, rate=rate, steps=steps)


@dataclass(frozen=True)
class Proximal(Term):
    """Half the squared distance of the weights to those that the round began with (Li et al. 2020).

    Args:
        weight: What FedProx calls mu.
        start: The parameters of the module, in its order.
    """

    name = "proximal"
    weight: float
    start: InitVar[Sequence[Tensor]]

    def __post_init__(self, start: Sequence[Tensor]) -> None:
        # Not a field: those are written into the provenance.
        object.__setattr__(self, "_start", tuple(start))

    def penalty(self, module: nn.Module) -> Tensor:
        """See `Term.penalty`."""
        start: tuple[Tensor, ...] = vars(self)["_start"]
        pairs = zip(module.parameters(), start, strict=True)
        distances = [(now - start.to(now.device)).square().sum() for now, start in pairs if now.requires_grad]
        return torch.stack(distances).sum() / 2


def derived_seed(seed: int, *key: object) -> int:
    """A seed of 63 bits for one part of a run, which says nothing about the others'."""
    text = "/".join(map(str, ("federated", seed, *key)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
