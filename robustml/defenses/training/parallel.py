"""Training on several processes that torch's launcher started: each takes a part of every batch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

__all__ = ["Team"]


class Team:
    """The processes of a run; one without `torchrun`.

    Batches are the same as on one process, and so are the random numbers of each sample, so the weights
    differ by rounding only. Layers that normalise over a batch see their own part of it.
    """

    def __init__(self) -> None:
        joined = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if joined else 0
        self.size = distributed.get_world_size() if joined else 1

    @property
    def leads(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def part(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The rows of a batch that this process works on."""
        return columns if self.size == 1 else tuple(column[self.rank :: self.size] for column in columns)

    def add_up(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes; each has divided its losses by the size of the whole batch."""
        if self.size == 1:
            return
        wanted = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in wanted:
            # A process whose part was empty has none.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in wanted if parameter.grad is not None])
        distributed.all_reduce(flat)
        start = 0
        for parameter in wanted:
            assert parameter.grad is not None
            parameter.grad.copy_(flat[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of some figures."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values
