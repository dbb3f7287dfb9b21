"""What an epoch is judged by: accuracy on data that is held out, as it is and under a short attack."""

from __future__ import annotations

import torch
from torch import Tensor

from ...classifier import Classifier
from ...losses import is_wrong, margin
from ...sampling import Streams
from ...threats import Threat
from .objective import ascend

__all__ = ["accuracies"]

_STEPS = 10
_BATCH = 512


def accuracies(
    model: Classifier, x: Tensor, y: Tensor, threats: tuple[Threat, ...], seed: int, device: torch.device
) -> tuple[float, float | None]:
    """Clean accuracy, and the share that also withstands ten steps of PGD on the margin within each threat.

    The attack is the same at every epoch: it ranks epochs, and overstates what they are worth.

    Args:
        model: In evaluation mode.
        x, y: What is held out (n, *shape) and int64 (n,).
        threats: None of them: only the clean accuracy is taken.
        seed: Of the run.
        device: Where the model is.
    """
    clean = robust = 0
    for start in range(0, len(x), _BATCH):
        part, labels = (column[start : start + _BATCH].to(device) for column in (x, y))
        with torch.no_grad():
            stands = ~is_wrong(model(part), labels)
        clean += int(stands.sum())
        for threat in threats:
            rows = stands.nonzero()[:, 0]
            ball = threat.around(part[rows])
            streams = Streams.derive(seed, f"validation/{threat.name}", rows.cpu() + start)
            begin = ball.random(Streams(streams.keys.to(device)))
            length = 2.5 * threat.eps / _STEPS
            z = ascend(model, ball, labels[rows], begin, steps=_STEPS, length=length, loss=margin)
            with torch.no_grad():
                stands[rows] = ~is_wrong(model(z), labels[rows])
        robust += int(stands.sum())
    return clean / len(x), robust / len(x) if threats else None
