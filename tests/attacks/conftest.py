"""Small models and a way to run an attack on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from robustml.registry import find_attack
from robustml.sampling import Streams
from robustml.threats import Threat

Run = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def run() -> Run:
    """Run an attack by name, with streams keyed by the position of each sample unless `ids` says else."""

    def run_attack(
        name: str,
        model: Callable[[Tensor], Tensor],
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        **options: object,
    ) -> Tensor:
        attack = find_attack(name)
        streams = Streams.derive(seed, name, torch.arange(len(x)) if ids is None else ids)
        return attack.function(model, x, y, threat=threat, streams=streams, **attack.check(options))

    return run_attack


@pytest.fixture
def tiny_cnn() -> nn.Module:
    """A fixed convolutional network for inputs (2, 6, 6), in evaluation mode, with 4 classes."""
    torch_state = torch.get_rng_state()
    torch.manual_seed(11)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(216, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    )
    torch.set_rng_state(torch_state)
    return model.eval()


@pytest.fixture
def images(tiny_cnn: nn.Module) -> tuple[Tensor, Tensor]:
    """24 inputs (2, 6, 6) in [0, 1] with the labels that the network gives them."""
    x = torch.rand(24, 2, 6, 6, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return x, tiny_cnn(x).argmax(1)
