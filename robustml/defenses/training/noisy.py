"""Training under Gaussian noise, for a model that is to be smoothed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ...checks import real
from ...classifier import Classifier
from ...losses import cross_entropy
from .objective import Answers, Batch, Objective

__all__ = ["Noisy"]


@dataclass(frozen=True)
class Noisy(Objective):
    """Cross-entropy under fresh Gaussian noise (Cohen et al. 2019, section 3.3), as `Smoothing` adds it.

    A model that is to answer under noise must have seen it. Alone it proves nothing: put
    `robustml.defenses.guards.Smoothing` of the same sigma before the model, and certify. The noise is cut
    neither to bounds nor to whole numbers, since that of the certificate is not.

    Args:
        sigma: Standard deviation of the noise on each feature, in the unit of `eps`: that of the input, or of
            `InputSpec.scale` where there is one.
    """

    sigma: float

    name = "noisy"

    def __post_init__(self) -> None:
        real("sigma", self.sigma)

    def craft(self, model: Classifier, batch: Batch) -> Tensor:
        noise = batch.streams.normal(*model.inputs.shape, dtype=batch.x.dtype) * self.sigma
        return batch.x + noise * model.inputs.like(model.inputs.scale, noise)

    def losses(self, ask: Answers, batch: Batch, z: Tensor) -> Tensor:
        return cross_entropy(ask(z), batch.y)
