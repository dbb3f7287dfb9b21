from __future__ import annotations

from torch import Tensor

from ...losses import loss_named
from ...registry import Access, Logits, attack
from ...sampling import Streams
from ...surrogates import Gradient
from ...threats import Threat
from ..active import Search


@attack(
    "fgsm",
    access=Access.GRADIENT,
    norms={"linf", "l2"},
    reference="Goodfellow, Shlens and Szegedy 2015, section 4",
)
def fgsm(
    model: Logits,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    streams: Streams,
    loss: str = "ce",
    gradient: Gradient = "true",
) -> Tensor:
    """Fast gradient sign method: one step of the full budget along the gradient.

    Args:
        loss: What to maximise: "ce", "dlr" or "margin".
        gradient: Follow the "true" gradient, or the "smooth" one of the surrogates.
    """
    search = Search(model, x, y, threat, streams)
    _, slope = search.climb(x, loss_named(loss), smooth=gradient == "smooth")
    z = search.ball.uphill(x, slope, search.ball.eps)
    search.look(z)
    return search.finish(z)
