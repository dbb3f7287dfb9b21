"""What differential privacy is asked of a run of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from ...checks import real, whole
from ...errors import InputError, brief, suggest
from .mechanism import Mechanism, Sampler
from .randomness import randomness

__all__ = ["DifferentialPrivacy", "Mode", "Observer"]

Mode = Literal["auto", "hooks", "ghost", "functional", "each"]
Observer = Callable[[dict[str, Tensor]], None]

MODES = ("auto", "hooks", "ghost", "functional", "each")


@dataclass(frozen=True)
class DifferentialPrivacy:
    """Differentially private training (Abadi et al. 2016, Algorithm 1), as `harden(..., privacy=...)`.

    A step takes each sample on its own with the same probability, clips what it contributes, with all of its
    views as one, to a norm, adds Gaussian noise, and divides by `batch_size`, a number that does not depend
    on the data. The guarantee is for adding or removing one sample, whose number is regarded as public.
    It covers the weights that come out. It does not cover the log of the training loss, the checkpoint, data
    held out by the caller to choose an epoch, or a start from weights that have seen the same data.

    Args:
        epsilon: What the whole run may spend: the noise is chosen for it. Give this or `noise_multiplier`.
        noise_multiplier: Standard deviation of the noise, in units of `clipping_norm`; 0 clips without noise,
            which protects nobody.
        delta: The probability that the bound does not cover; below one over the number of samples.
        clipping_norm: The largest L2 norm of what one sample contributes.
        max_epsilon: With `noise_multiplier`: training stops before this is exceeded.
        mode: How the gradient of each sample is taken: "hooks" and "ghost" are those of Opacus, "functional"
            is `torch.func`, and "each" goes one sample at a time, which is slow and right for everything.
            "auto" takes the fastest that gives what "each" gives for this model and objective.
        physical_batch: The most samples that are worked on at once; None for as many as `memory` has room
            for. It changes no result but by rounding.
        memory: What gradients and activations of a physical batch may take, in MiB.
        teacher_is_public: Says that a teacher, if there is one, has not seen this data, or was trained
            privately and is accounted elsewhere. A teacher is refused otherwise.
        seed: Makes noise and sampling repeatable, and known to whoever knows the seed; None takes them from
            the operating system.
        observer: Called at each step with the noised sum of each parameter's clipped gradients, by name,
            before it is divided; for audits.

    Raises:
        InputError: for a value that cannot be used.
    """

    epsilon: float | None = None
    noise_multiplier: float | None = field(default=None, kw_only=True)
    delta: float = field(default=1e-5, kw_only=True)
    clipping_norm: float = field(default=1.0, kw_only=True)
    max_epsilon: float | None = field(default=None, kw_only=True)
    mode: Mode = field(default="auto", kw_only=True)
    physical_batch: int | None = field(default=None, kw_only=True)
    memory: int = field(default=512, kw_only=True)
    teacher_is_public: bool = field(default=False, kw_only=True)
    seed: int | None = field(default=None, kw_only=True)
    observer: Observer | None = field(default=None, kw_only=True, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise InputError("privacy takes exactly one of epsilon and noise_multiplier")
        for name in ("epsilon", "max_epsilon"):
            if getattr(self, name) is not None:
                real(name, getattr(self, name))
        if self.noise_multiplier is not None:
            real("noise_multiplier", self.noise_multiplier, closed=True)
        real("delta", self.delta, high=1.0)
        real("clipping_norm", self.clipping_norm)
        if self.max_epsilon is not None and self.epsilon is not None:
            raise InputError("max_epsilon goes with noise_multiplier; epsilon is a limit already")
        if self.mode not in MODES:
            raise InputError(f"mode={brief(self.mode)} is not known{suggest(str(self.mode), MODES)}")
        whole("memory", self.memory, 1)
        if self.physical_batch is not None:
            whole("physical_batch", self.physical_batch, 1)
        if self.seed is not None:
            whole("seed", self.seed)

    def sampler(self, samples: int, rate: float) -> Sampler:
        """What chooses the samples of each step."""
        return Sampler(samples, rate, randomness(self.seed))

    def mechanism(self, noise_multiplier: float) -> Mechanism:
        """What clips and adds noise."""
        return Mechanism(self.clipping_norm, noise_multiplier, randomness(self.seed))

    def to_dict(self) -> dict[str, Any]:
        """Plain data: everything that decides the outcome."""
        hidden = {"observer", "memory"}
        return {
            one.name: getattr(self, one.name) for one in dataclasses.fields(self) if one.name not in hidden
        }
