"""Random numbers that belong to a sample, not to a batch.

Every number is a pure function of (seed, purpose, sample id, restart, draw, element), so it does not
matter in which batch, order, shard or resumed run a sample is worked on. The generator is SplitMix64
(Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators") used as a counter-based
hash, written in wrapping int64 tensor arithmetic: the same bits on every device.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

__all__ = ["Coarse", "Streams", "seeded", "splitmix64"]

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_A = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_B = -7723592293110705685  # 0x94D049BB133111EB


def _shift_right(z: Tensor, bits: int, out: Tensor | None = None) -> Tensor:
    # torch shifts int64 arithmetically; masking the copied sign bits makes the shift logical.
    shifted = torch.bitwise_right_shift(z, bits, out=out)
    shifted &= (1 << (64 - bits)) - 1
    return shifted


def splitmix64(state: Tensor) -> Tensor:
    """Return the SplitMix64 output that follows each int64 `state` (any shape)."""
    z = state + _GOLDEN
    # In place, since most of the time would go into memory for what lies between.
    shifted = torch.empty_like(z)
    for bits, factor in ((30, _MIX_A), (27, _MIX_B)):
        z ^= _shift_right(z, bits, out=shifted)
        z *= factor
    z ^= _shift_right(z, 31, out=shifted)
    return z


class Streams:
    """One independent random stream per sample; every draw returns one row per sample.

    Args:
        keys: int64 (n,), one key per sample; or what makes them, if they may never be needed. Use
            `Streams.derive` to make them.
    """

    def __init__(self, keys: Tensor | Callable[[], Tensor], *, draws: int = 0) -> None:
        self._given = keys
        self._draws = draws

    @functools.cached_property
    def keys(self) -> Tensor:
        """One key per sample: int64 (n,)."""
        return self._given if isinstance(self._given, Tensor) else self._given()

    @classmethod
    def derive(cls, seed: int, purpose: str, ids: Tensor) -> Streams:
        """Key one stream per sample by the run's seed, what the numbers are for, and the sample's id."""
        digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
        base = int.from_bytes(digest, "little", signed=True)
        return cls(splitmix64(splitmix64(ids.to(torch.int64)) ^ base))

    def __len__(self) -> int:
        return int(self.keys.shape[0])

    def select(self, rows: Tensor) -> Streams:
        """Keep the streams of some samples, at the point in their sequence that they have reached."""
        return Streams(self.keys[rows], draws=self._draws)

    def restart(self, number: int) -> Streams:
        """Fresh streams for restart `number`, independent of these and of what was drawn from them."""
        return Streams(splitmix64(self.keys ^ splitmix64(torch.full_like(self.keys, number))))

    def bits(self, *shape: int) -> Tensor:
        """Draw 64 random bits per element: int64 (n, *shape)."""
        count = math.prod(shape)
        start = splitmix64(self.keys + torch.full_like(self.keys, self._draws) * _MIX_A)
        self._draws += 1
        steps = torch.arange(count, device=self.keys.device) * _GOLDEN
        return splitmix64(start[:, None] + steps).view(len(self), *shape)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw uniformly from [0, 1): (n, *shape)."""
        digits = 53 if dtype == torch.float64 else 24
        bits = self.bits(*shape)
        return _shift_right(bits, 64 - digits, out=bits).to(dtype).mul_(2.0**-digits)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw from the standard normal distribution: (n, *shape)."""
        # Midpoints of 2**52 cells of (-1, 1): exact in float64, symmetric, and never at an end, where the
        # inverse of the error function is infinite. That of the distribution function takes twice as long.
        centred = _shift_right(self.bits(*shape), 12).to(torch.float64).add_(0.5).mul_(2.0**-51).sub_(1.0)
        normal: Tensor = torch.erfinv(centred).mul_(math.sqrt(2.0))
        return normal.to(dtype)

    def signs(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw -1 or +1 with equal probability: (n, *shape)."""
        return (_shift_right(self.bits(*shape), 63) * 2 - 1).to(dtype)

    def integers(self, high: Tensor | int, *shape: int) -> Tensor:
        """Draw integers from 0 to high - 1: int64 (n, *shape); `high` may differ per element."""
        unit = self.uniform(*shape, dtype=torch.float64)
        return (unit * high).to(torch.int64)


class Coarse(Streams):
    """Streams whose uniform numbers have 16 bits, four of them to a word: for training, where time counts."""

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Draw uniformly from the multiples of 2**-16 in [0, 1): (n, *shape)."""
        count = math.prod(shape)
        words = self.bits(-(-count // 4)).view(torch.int16)[:, :count]
        return words.to(dtype).add_(2.0**15).mul_(2.0**-16).view(len(self), *shape)


@contextlib.contextmanager
def seeded(device: torch.device, *key: object) -> Iterator[None]:
    """While this lasts, torch's global random numbers are those of a key; then they are what they were."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "little") >> 1
    places = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(places):
        torch.default_generator.manual_seed(seed)
        if places:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
