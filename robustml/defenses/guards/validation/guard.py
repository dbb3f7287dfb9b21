"""The guard that checks every input against what the model was made for and trained on."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import torch
from annotated_types import Ge, Lt
from torch import Tensor

from ....errors import InputError
from ....estimates import clopper_pearson
from ....guards import Answer, Guard, checked, guard
from ....inputs import InputSpec
from ..calibration import Calibration, calibrated, needed, shuffled
from .entry import Door
from .images import ImageRules, check_formats
from .learning import outside, ranges_of, training_data
from .reasons import CODES, Checked, Columnar, Labels, Refusals, RefusedInput
from .rules import Rules
from .spread import Spread, fit_spread
from .tabular import Entry

__all__ = ["Validate"]

Array = np.ndarray[Any, Any]

_AT_ONCE = 1 << 22  # values that are checked at a time, so that temporary arrays stay small


@guard("validate", reference="Tipping and Bishop 1999, equations 6 to 8 (the distribution check)")
class Validate(Guard):
    """Checks that an input is what the model was made for, and rejects, raises or clips it otherwise.

    Unfitted it checks the bounds, whole numbers, levels and one-hot groups of `inputs`; `Validate.fit` adds
    the ranges of the training data and a distance to them as a whole. On tensors it is a guard like any
    other, and mode "raise" rejects, too: an attack, and the other inputs of a batch, must be able to go on.
    `check` is where raw inputs come in, and where "raise" raises.

    Args:
        mode: What to do with an input that breaks a rule: "reject" it, "raise" `RefusedInput` in `check`, or
            "clip" each value to the nearest that is allowed. What cannot be clipped is still refused by
            `check`; the distance to the training data is not looked at then.
        discrete: Whether values of whole-numbered features, levels and one-hot groups are checked.
        margin: By how much of its training range a feature may lie beyond it, as fresh clean inputs do.
        fpr: The rate at which the distance to the training data may reject clean inputs; 0 switches it off.
        rank: How many directions of that distance have a variance of their own.
        extra: What to do about columns that no feature is called after.
        layout: How arrays of images are laid out: "chw" or "hwc".
        formats: The image formats that are accepted, as in ["PNG", "JPEG"]; if None, BMP, GIF, JPEG, PNG and
            WEBP.
        convert: Whether images of other colors are converted instead of refused. Transparency never is.
        resize: Whether images of another size are scaled instead of refused.
        max_bytes: The largest image file that is opened.
        max_pixels: The largest image that is decoded.
        max_rows: How many inputs may come at once.

    Raises:
        InputError: for an unacceptable option.
    """

    rejects = True

    mode: Literal["reject", "raise", "clip"]
    discrete: bool
    margin: float
    fpr: float
    rank: int
    extra: Literal["refuse", "ignore"]
    layout: Literal["chw", "hwc"]
    formats: list[str] | None
    convert: bool
    resize: bool
    max_bytes: int
    max_pixels: int
    max_rows: int

    low: Tensor
    high: Tensor
    center: Tensor
    weight: Tensor
    directions: Tensor
    limit: Tensor
    counts: Tensor

    def __init__(
        self,
        mode: Literal["reject", "raise", "clip"] = "reject",
        discrete: bool = True,
        margin: Annotated[float, Ge(0)] = 0.1,
        fpr: Annotated[float, Ge(0), Lt(1)] = 0.01,
        rank: Annotated[int, Ge(0)] = 16,
        extra: Literal["refuse", "ignore"] = "refuse",
        layout: Literal["chw", "hwc"] = "chw",
        formats: list[str] | None = None,
        convert: bool = False,
        resize: bool = False,
        max_bytes: Annotated[int, Ge(1)] = 1 << 24,
        max_pixels: Annotated[int, Ge(1)] = 1 << 24,
        max_rows: Annotated[int, Ge(1)] = 1 << 24,
    ) -> None:
        given = {name: value for name, value in locals().items() if name not in {"self", "__class__"}}
        super().__init__()
        for name, value in checked(type(self), given).items():
            setattr(self, name, value)
        check_formats(formats)
        # A guard that clips lets everything through; the declaration is per guard here, not per class.
        vars(self)["rejects"] = mode != "clip"
        for name, axes in (
            ("low", 1),
            ("high", 1),
            ("center", 1),
            ("weight", 1),
            ("directions", 2),
            ("limit", 1),
        ):
            self.register_buffer(name, torch.zeros((0,) * axes, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(0, dtype=torch.int64))
        self._rules: Rules | None = None

    @classmethod
    def fit(cls, x: Array | Tensor, **options: Any) -> Self:
        """Learn ranges and the distribution of clean inputs.

        Half of the inputs calibrates the limit of the distance and nothing else, so that its rate of false
        rejections holds for fresh inputs of the same distribution.

        Args:
            x: Clean inputs in input units (n, *shape); images (n, channels, height, width) have a range and a
                scale per channel, other inputs per feature.
            **options: Those of the constructor.

        Raises:
            InputError: for an unacceptable option, values that are no finite numbers, or too few inputs.
        """
        made = cls(**options)
        data = training_data(x)
        wanted = 2 * needed(made.fpr) if made.fpr else 2
        if len(data) < wanted:
            raise InputError(
                f"x holds {len(data)} inputs; fpr={made.fpr:g} takes {wanted}, half of them to calibrate on"
            )
        groups = data.shape[1] if data.ndim == 4 else data[0].numel()
        flat = data.flatten(1)
        order = shuffled(len(flat))
        aside, seen = flat[order[::2]], flat[order[1::2]]
        refused = outside(aside, made._widened(*ranges_of(seen, groups)), groups)
        exceeded = 0
        if made.fpr:
            spread = fit_spread(seen, made.rank, groups)
            scores = spread.blocks(aside)
            found = calibrated(scores.numpy(), made.fpr)
            refused |= scores > found.threshold
            exceeded = found.exceeded
            made.center, made.weight, made.directions = spread.center, spread.weight, spread.directions
            # Inputs that are all equal have no distance; a limit of 0 could not be divided by.
            made.limit = torch.tensor([max(found.threshold, 1e-12)], dtype=torch.float64)
        # The ranges of all inputs are wider than those that were counted with.
        made.low, made.high = ranges_of(flat, groups)
        made.counts = torch.tensor([exceeded, int(refused.sum()), len(aside)])
        return made

    def attach(self, inputs: InputSpec) -> None:
        size = len(self.center)
        if (len(self.high), len(self.weight), len(self.directions)) != (len(self.low), size, size) or (
            len(self.limit) != (size > 0) or len(self.counts) not in {0, 3}
        ):
            raise InputError("guard validate is damaged: what it has learned does not belong together")
        if len(self.low) not in {0, inputs.shape[0], inputs.size} or len(self.center) not in {0, inputs.size}:
            raise InputError(f"guard validate was fitted to inputs of another shape than {inputs.shape}")
        rules = Rules.of(inputs, *self._widened(self.low, self.high), discrete=self.discrete)
        if len(self.low):
            plain = Rules.of(inputs, self.low, self.high, discrete=False)
            if bool((plain.limits(self.low)[0] > plain.limits(self.low)[1]).any()):
                raise InputError(
                    "guard validate was fitted to values that lie outside of the bounds of the inputs"
                )
        super().attach(inputs)
        self._rules = rules

    def _widened(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        room = self.margin * (high - low)
        return low - room, high + room

    @property
    def calibration(self) -> Calibration | None:
        """The limit of the distance to the training data, and how often clean inputs exceed it."""
        if not len(self.limit):
            return None
        return Calibration(float(self.limit[0]), int(self.counts[0]), int(self.counts[2]))

    @property
    def false_rejections(self) -> tuple[float, float, float] | None:
        """The rate at which all that was learned refuses fresh clean inputs, and its exact 95 % interval.

        It was counted with the ranges of half of the data, so it is rather too high.
        """
        if not len(self.counts):
            return None
        count, total = self.counts[1:].tolist()
        return count / total, *clopper_pearson(count, total)

    def _ready(self, x: Tensor | None = None) -> Rules:
        if self._rules is None or self.inputs is None:
            raise InputError(
                "guard validate does not know its inputs yet; put it into Guarded, or call attach(inputs)"
            )
        if x is not None and tuple(x.shape[1:]) != self.inputs.shape:
            raise InputError(
                f"x has shape {tuple(x.shape)}; inputs have (n, {', '.join(map(str, self.inputs.shape))})"
            )
        return self._rules

    def forward(self, x: Tensor) -> Tensor:
        """The repaired batch in mode "clip"; otherwise the batch, with numbers where there were none."""
        rules = self._ready(x)
        if self.mode == "clip":
            return rules.repaired(x)
        # Such rows are rejected; what NaN would make of their logits must not hide that.
        if x.device.type == "cpu" and bool(x.sum().isfinite()):
            return x
        low, high = float(rules.floor.min()), float(rules.ceiling.max())
        return x.nan_to_num(nan=low, posinf=high, neginf=low)

    def surrogate(self, x: Tensor) -> Tensor:
        """The clamp, where values are clipped: rounding hides what lies behind it."""
        return self._ready(x).clipped(x) if self.mode == "clip" else x

    def score(self, x: Tensor, model: Answer | None = None) -> Tensor:
        """Above 0 where a rule is broken (n,), infinite for what is no number.

        It is -1 where all limits are kept, and 1 plus the distance to what is allowed where not: an input on
        its limit is as valid as any other, so the two must not meet. The distance to the training data is
        continuous: its ratio to the limit, minus 1.
        """
        hard = self._ready(x).hard(x)
        score = torch.where(hard <= 0, torch.full_like(hard, -1.0), 1 + hard)
        if self._looks_at_spread:
            score = torch.maximum(score, self._distance(x) / self.limit.to(x) - 1)
        return score.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)

    @property
    def _looks_at_spread(self) -> bool:
        return len(self.limit) > 0 and self.mode != "clip"

    def _distance(self, x: Tensor) -> Tensor:
        return Spread(self.center, self.weight, self.directions)(x)

    def check(self, raw: Any) -> Checked:
        """Bring raw inputs to rows that the model can take, and say why for every one that cannot be.

        Args:
            raw: An array, tensor or list of numbers (n, *shape) or one input (*shape), in input units; a
                mapping or data frame of named columns; the bytes of an image file, a PIL image, or a list of
                them. Colors of 8 bits in files and PIL images are scaled to the bounds, those in arrays are
                not.

        Raises:
            RefusedInput: in mode "raise", if anything is refused; it says why for each.
            InputError: before the guard knows its inputs; nothing else, whatever comes.
        """
        result = self.examine(raw)
        if self.mode == "raise" and result.refusals:
            raise RefusedInput(result.refusals)
        return result

    def examine(self, raw: Any) -> Checked:
        """The same as `check`, without raising what is refused in mode "raise"."""
        self._ready()
        return self._judged(self._door().enter(raw))

    def _door(self) -> Door:
        assert self.inputs is not None
        formats = check_formats(self.formats)
        shape = self.inputs.shape
        images = ImageRules(shape, formats, self.max_bytes, self.max_pixels, self.resize, self.convert)
        return Door(self.inputs, images, self.extra, self.layout, self.max_rows)

    def _judged(self, entry: Entry) -> Checked:
        assert self.inputs is not None
        block = max(_AT_ONCE // self.inputs.size, 1)
        kept, rows, reasons = [], [], []
        with torch.no_grad():
            for start in range(0, len(entry.x), block):
                came = entry.x[start : start + block]
                x, bad, why = self._block(came)
                places = entry.rows[start : start + block]
                good = np.ones(len(came), np.bool_)
                good[bad] = False
                kept.append(x if not len(bad) else x[torch.from_numpy(good)])
                rows.append(places[good])
                reasons.append((places[bad], *why))
        if not kept:
            kept, rows = [torch.zeros(0, *self.inputs.shape, dtype=self.inputs.torch_dtype)], [entry.rows]
        columnar = None
        if reasons:
            positions, codes, features, values = map(np.concatenate, zip(*reasons, strict=True))
            columnar = Columnar(positions, codes, features, values, self._labels(entry.x.dtype))
        return Checked(
            kept[0] if len(kept) == 1 else torch.cat(kept),
            np.concatenate(rows),
            entry.total,
            Refusals(entry.refusals, columnar),
        )

    def _block(self, came: Array) -> tuple[Tensor, Array, tuple[Array, Array, Array]]:
        """Rows in the precision of the model, which are bad, and codes, features and values of those."""
        rules = self._ready()
        assert self.inputs is not None
        with np.errstate(
            all="ignore"
        ):  # what is too large for the precision becomes infinite, and is refused
            x = torch.from_numpy(np.array(came, dtype=self.inputs.dtype, order="C"))
        if self.mode == "clip":
            bad = np.flatnonzero(~np.isfinite(came).reshape(len(came), -1).all(1))
            x_bad, x = x[torch.from_numpy(bad)], rules.repaired(x)
        else:
            bad = np.flatnonzero((self.score(x) > 0).numpy())
            x_bad = x[torch.from_numpy(bad)]
        original = came[bad].reshape(len(bad), self.inputs.size)
        infinite = torch.from_numpy(np.isinf(original))
        codes, features = (
            found.numpy()
            for found in rules.reasons(x_bad, infinite, self.score if self._looks_at_spread else None)
        )
        with np.errstate(all="ignore"):
            values = original[np.arange(len(bad)), np.maximum(features, 0)].astype(np.float64)
        far = codes == CODES.index("spread")
        if far.any():
            values[far] = self._distance(x_bad[torch.from_numpy(far)]).double().numpy()
        return x, bad, (codes, features, values)

    def _labels(self, kind: np.dtype[Any]) -> Labels:
        rules, inputs = self._ready(), self.inputs
        assert inputs is not None
        bytes_of_image = kind == np.uint8 and inputs.is_image and float(rules.ceiling.max()) <= 1

        def within(low: Tensor, high: Tensor, after: str) -> Any:
            repeats = inputs.size // max(len(low), 1)
            return lambda f: (
                f"[{float(low[f // repeats]):.9g}, {float(high[f // repeats]):.9g}] is accepted{after}"
            )

        hint = "; divide 8-bit colors by 255" if bytes_of_image else ""
        return Labels(
            inputs.features,
            {
                "not-finite": "a finite number is accepted",
                "bounds": within(rules.floor, rules.ceiling, hint),
                "training-range": within(rules.low, rules.high, ", the range of the training data"),
                "integer": "a whole number is accepted",
                "levels": f"one of {inputs.levels} levels is accepted",
                "one-hot": "exactly one 1 among zeros is accepted",
                "spread": "a distance to the training data of at most "
                f"{float(self.limit.sum()):.6g} is accepted",
            },
        )
