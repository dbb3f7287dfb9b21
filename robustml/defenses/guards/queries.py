"""Noticing an attack by its questions: what a client asks resembles what it has asked before.

An attack that sees only answers asks about hundreds of variants of one input. This belongs where a service
takes requests and knows who sends them. It is no guard inside a model: a model gives the same answer to the
same question, whoever asks it and whatever was asked before.

One client who changes little is caught within about `k` queries. Many clients, or one who hides the queries
among others or makes them differ, is not: see the how-to for figures.
"""

from __future__ import annotations

import json
import math
import numbers
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from ...checks import share, whole
from ...errors import InputError, brief, suggest
from ...files import write_atomic
from ...inputs import InputSpec
from ...sampling import Streams
from .calibration import Calibration, batch_of, calibrated, needed, shuffled

__all__ = ["Encoding", "QueryDetector"]

Encoding = Literal["project", "pool"]

_ENCODINGS = get_args(Encoding)
_SCHEMA = "robustml.queries/1"
_CHUNK = 256  # queries that are compared at once
_LARGEST = 1e18  # of an input: sums of squares of codes stay numbers


class _Client:
    """What one client has asked lately."""

    def __init__(self, codes: Tensor, queries: int = 0, flagged: int = 0) -> None:
        self.lock = threading.Lock()
        self.codes = codes
        self.queries = queries
        self.flagged = flagged


class QueryDetector:
    """Flag queries that are near-duplicates of what the same client has asked before (Chen et al. 2019).

    Of each query a short code is kept. A query is flagged if the mean distance of its code to the `k` nearest
    ones among the last `history` of the same client is below the threshold. Several threads may use it.

    Memory: 4 * `width` * `history` bytes for each client, of whom the `clients` that were heard of last are
    remembered.

    Args:
        inputs: The space of the inputs.
        threshold: The mean distance below which a query is flagged, in the units of the code.
        k: How many past queries have to be near; before the first `k`, none is flagged.
        history: How many past queries of a client are remembered.
        clients: How many clients are remembered.
        encoding: "project" maps an input, scaled to [0, 1] by its bounds, to `width` numbers at random, which
            keeps distances about as they are; "pool" averages the cells of a square grid over an image.
        width: The length of a code, at most.
        seed: Of the projection. Who knows it can make queries differ in their codes with smaller changes.
        calibration: What `fit` found out about clean traffic.

    Raises:
        InputError: for unacceptable arguments.
    """

    def __init__(
        self,
        inputs: InputSpec,
        *,
        threshold: float,
        k: int = 50,
        history: int = 1000,
        clients: int = 1000,
        encoding: Encoding = "project",
        width: int = 64,
        seed: int = 0,
        calibration: Calibration | None = None,
    ) -> None:
        if not isinstance(inputs, InputSpec):
            raise InputError(f"inputs is {type(inputs).__name__}, not an InputSpec")
        number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
        if not number or not 0 < float(threshold) < math.inf:
            raise InputError(f"threshold={brief(threshold)} is not a number above 0")
        self.inputs, self.threshold = inputs, float(threshold)
        self.k, self.clients = whole("k", k, 1), whole("clients", clients, 1)
        self.history = whole("history", history, 1)
        if self.history < self.k:
            raise InputError(f"history={history} is shorter than k={k}: nothing would ever be flagged")
        self.width, self.seed = whole("width", width, 1), whole("seed", seed, 0)
        if encoding not in _ENCODINGS:
            raise InputError(f"encoding={brief(encoding)} is not known{suggest(str(encoding), _ENCODINGS)}")
        if encoding == "pool" and len(inputs.shape) != 3:
            raise InputError(f'encoding="pool" works on images (channels, height, width), not {inputs.shape}')
        self.encoding: Encoding = encoding
        self.calibration = calibration
        self._projection = self._drawn() if encoding == "project" else None
        self._known: OrderedDict[str, _Client] = OrderedDict()
        self._lock = threading.Lock()
        self._forgotten = self._past_queries = self._past_flagged = 0

    @classmethod
    def fit(
        cls,
        x: np.ndarray[Any, Any] | Tensor,
        *,
        inputs: InputSpec,
        fpr: float = 0.001,
        history: int = 1000,
        **options: Any,
    ) -> Self:
        """Choose the threshold so that clean queries are flagged at a rate of at most `fpr`.

        Clean inputs, in an order that is always the same, are dealt into whole histories of past queries and
        into fresh ones (a half of the data, or what `fpr` needs if that is more), and each fresh one is
        compared with a history. The rate is that of a client with a full history, who asks about inputs that
        have as little to do with each other as those of `x` have. A client who asks the same question again
        and again, or about neighboring frames of a film, is flagged more often.

        Args:
            x: Distinct clean inputs (n, *shape).
            inputs: The space of the inputs.
            fpr: The false-positive rate per query.
            history: As for the constructor.
            options: Those of the constructor, without `threshold` and `calibration`.

        Raises:
            InputError: for unacceptable arguments, or too few inputs.
        """
        fpr = share("fpr", fpr, zero=False, one=False)
        made = cls(inputs, threshold=1.0, history=history, **options)
        clean = batch_of(x, inputs)
        least = needed(fpr)
        if len(clean) < made.history + least:
            raise InputError(
                f"fpr={fpr:g} with history={history} needs {made.history + least} inputs; {len(clean)} came"
            )
        codes = torch.cat([made._codes(part) for part in torch.split(clean, _CHUNK)])[shuffled(len(clean))]
        fresh = codes[: min(max(least, len(codes) // 2), len(codes) - made.history)]
        past = codes[len(fresh) :]
        histories = past[: len(past) // made.history * made.history].view(-1, made.history, codes.shape[1])
        distances = [
            _mean_distance(torch.cdist(part.double(), each.double()), made.k)
            for place, each in enumerate(histories)
            for part in torch.split(fresh[place :: len(histories)], _CHUNK)
        ]
        # Flagged is what lies below, so the lowest distances are the highest scores.
        found = calibrated(-torch.cat(distances).numpy(), fpr)
        if not found.threshold < 0:
            raise InputError(
                "x holds so many copies that clean queries have a distance of 0; drop the copies"
            )
        made.threshold = -found.threshold
        made.calibration = Calibration(made.threshold, found.exceeded, found.samples)
        return made

    def observe(self, client: str, batch: np.ndarray[Any, Any] | Tensor) -> np.ndarray[Any, Any]:
        """Take note of queries, in their order, and say which are near-duplicates of earlier ones.

        Args:
            client: Who asks: an account or a key, whatever is hardest to have many of.
            batch: The queries (n, *shape).

        Returns:
            Whether each is flagged, bool (n,).

        Raises:
            InputError: for an unacceptable client or batch, of which nothing is noted then.
        """
        if not isinstance(client, str) or not client:
            raise InputError(f"client={brief(client)} is not a name")
        queries = batch_of(batch, self.inputs)
        flags = [torch.zeros(0, dtype=torch.bool)]
        known = self._met(client)
        for part in torch.split(queries, _CHUNK):
            codes = self._codes(part)
            with known.lock:
                flags.append(self._compare(known, codes))
        return torch.cat(flags).numpy()

    def forget(self, client: str) -> None:
        """Drop what is known of a client, for instance because the account was closed."""
        with self._lock:
            self._drop(self._known.pop(client, None))

    def counts(self, client: str | None = None) -> dict[str, int]:
        """How many queries came, and how many were flagged: of one client, or of all with their number.

        A client who is not remembered has asked nothing; in the sums its queries stay.
        """
        with self._lock:
            if client is not None:
                one = self._known.get(client)
                return {"queries": one.queries if one else 0, "flagged": one.flagged if one else 0}
            return {
                "queries": self._past_queries + sum(each.queries for each in self._known.values()),
                "flagged": self._past_flagged + sum(each.flagged for each in self._known.values()),
                "clients": len(self._known),
                "forgotten": self._forgotten,
            }

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file: options, clients and the codes of their queries.

        Codes are of what people sent; treat the file as you treat their inputs. It also holds the seed.

        Raises:
            RunError: if the file cannot be written.
        """
        import safetensors.torch

        with self._lock:
            entries = [(name, *self._snapshot(each)) for name, each in self._known.items()]
            sums = [self._forgotten, self._past_queries, self._past_flagged]
        found = self.calibration
        about = {
            "schema": _SCHEMA,
            "inputs": self.inputs.to_dict(),
            "options": {
                name: getattr(self, name)
                for name in ("threshold", "k", "history", "clients", "encoding", "width", "seed")
            },
            "calibration": None if found is None else [found.threshold, found.exceeded, found.samples],
            "clients": [[name, queries, flagged, len(codes)] for name, codes, queries, flagged in entries],
            "sums": sums,
        }
        empty = torch.zeros(0, self._length)
        codes = torch.cat([empty, *(entry[1] for entry in entries)])
        write_atomic(path, safetensors.torch.save({"codes": codes}, {"robustml": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            InputError: if the file is something else, or damaged.
        """
        import safetensors

        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {}).get("robustml", "null"))
                codes = file.get_tensor("codes") if "codes" in file.keys() else None  # noqa: SIM118
        except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
            raise InputError(f"{path} is not a safetensors file: {brief(str(error))}") from None
        if not isinstance(about, dict) or about.get("schema") != _SCHEMA or codes is None:
            raise InputError(f"{path} is no query detector; QueryDetector.save writes one")
        try:
            found = about["calibration"]
            calibration = (
                None if found is None else Calibration(float(found[0]), int(found[1]), int(found[2]))
            )
            made = cls(InputSpec.from_dict(about["inputs"]), calibration=calibration, **about["options"])
            made._restore(about["clients"], about["sums"], codes)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise InputError(f"{path} is damaged: {brief(str(error))}") from None
        return made

    def _restore(self, entries: Any, sums: Any, codes: Tensor) -> None:
        if codes.shape[1:] != (self._length,) or codes.dtype != torch.float32 or len(entries) > self.clients:
            raise ValueError("codes do not fit the options")
        lengths = [whole("length", entry[3], 0) for entry in entries]
        if max(lengths, default=0) > self.history:
            raise ValueError("a history is longer than the options allow")
        for (name, queries, flagged, _), own in zip(entries, codes.split(lengths), strict=True):  # type: ignore[no-untyped-call]
            self._known[str(name)] = _Client(
                own.clone(), whole("queries", queries, 0), whole("flagged", flagged, 0)
            )
        self._forgotten, self._past_queries, self._past_flagged = (whole("sum", n, 0) for n in sums)

    def _met(self, client: str) -> _Client:
        """The record of a client, who is now the one heard of last."""
        with self._lock:
            known = self._known.get(client)
            if known is None:
                known = self._known[client] = _Client(torch.zeros(0, self._length))
            self._known.move_to_end(client)
            while len(self._known) > self.clients:
                self._drop(self._known.popitem(last=False)[1])
                self._forgotten += 1
            return known

    def _drop(self, client: _Client | None) -> None:
        if client is not None:
            self._past_queries += client.queries
            self._past_flagged += client.flagged

    @staticmethod
    def _snapshot(client: _Client) -> tuple[Tensor, int, int]:
        with client.lock:
            return client.codes, client.queries, client.flagged

    def _compare(self, client: _Client, codes: Tensor) -> Tensor:
        """Flag queries by what the client asked before each of them, and remember them: bool (n,)."""
        both = torch.cat([client.codes, codes])
        distances = torch.cdist(codes.double(), both.double())
        place = torch.arange(len(both))
        now = place[len(client.codes) :, None]
        distances.masked_fill_((place >= now) | (place < now - self.history), torch.inf)
        flags = _mean_distance(distances, self.k) < self.threshold
        client.codes = both[-self.history :].clone()
        client.queries += len(codes)
        client.flagged += int(flags.sum())
        return flags

    @property
    def _length(self) -> int:
        if self.encoding == "pool":
            return self.inputs.shape[0] * self._side**2
        return min(self.width, self.inputs.size)

    @property
    def _side(self) -> int:
        """How many cells are on each side of the grid that an image is averaged over."""
        return max(1, min(math.isqrt(self.width // self.inputs.shape[0]), *self.inputs.shape[1:]))

    def _drawn(self) -> Tensor | None:
        """Random directions (features, width); none where an input is no longer than a code."""
        if self.inputs.size <= self.width:
            return None
        streams = Streams.derive(self.seed, "queries", torch.arange(self.inputs.size))
        return streams.normal(self.width, dtype=torch.float64) / math.sqrt(self.width)

    def _codes(self, x: Tensor) -> Tensor:
        """The codes float32 (n, length) of queries (n, *shape)."""
        unit = self.inputs.to_unit(x).clamp(-_LARGEST, _LARGEST)
        if self.encoding == "pool":
            codes = torch.nn.functional.adaptive_avg_pool2d(unit, self._side).flatten(1)
        else:
            codes = unit.flatten(1) if self._projection is None else unit.flatten(1) @ self._projection
        return codes.float()


def _mean_distance(distances: Tensor, k: int) -> Tensor:
    """The mean of the k smallest in each row of (n, m), infinite if there are fewer: (n,)."""
    if distances.shape[1] < k:
        return distances.new_full((len(distances),), torch.inf)
    return distances.topk(k, dim=1, largest=False).values.mean(1)
