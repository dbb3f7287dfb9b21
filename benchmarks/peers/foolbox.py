from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import Attack, Batch, Entry, Library, by_name


def _attack(name: str, *, minimum: bool, **options: Any) -> Attack:
    """An attack by the name of its class; a minimum-norm one returns its nearest point."""

    def run(foolbox: Any, batch: Batch) -> Tensor:
        model = foolbox.PyTorchModel(batch.net, bounds=(0, 1), device="cpu")
        attack = getattr(foolbox.attacks, name)(**options)
        raw, clipped, _ = attack(model, batch.x, batch.y, epsilons=None if minimum else batch.eps)
        found: Tensor = raw if minimum else clipped
        return found.detach()

    return run


FOOLBOX = Library(
    name="foolbox",
    title="Foolbox",
    distribution="foolbox",
    install="pip install foolbox==3.3.4",
    load=by_name("foolbox"),
    entries={
        "pgd": Entry(
            _attack("LinfPGD", minimum=False, steps=40, rel_stepsize=2.5 / 40),
            "returns the last iterate, not the best",
        ),
        "fmn-l2": Entry(_attack("L2FMNAttack", minimum=True, steps=100)),
        "fmn-linf": Entry(_attack("LInfFMNAttack", minimum=True, steps=100)),
        "ddn": Entry(_attack("DDNAttack", minimum=True, steps=100)),
        "deepfool": Entry(_attack("L2DeepFoolAttack", minimum=True, steps=50, candidates=10)),
        "carlini-wagner": Entry(
            _attack(
                "L2CarliniWagnerAttack",
                minimum=True,
                binary_search_steps=5,
                steps=100,
                stepsize=0.05,
                initial_const=1.0,
                abort_early=False,
            ),
            "step 0.05, first weight 1: its defaults reach fewer",
        ),
        "hop-skip-jump": Entry(
            _attack("HopSkipJumpAttack", minimum=True, steps=20, initial_gradient_eval_steps=100), "20 steps"
        ),
    },
)
