"""What each diagnostic is about: the table that reports, documents and the command line draw from."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "Code"]


@dataclass(frozen=True)
class Code:
    """What a diagnostic is about."""

    title: str
    critical: bool
    threshold: str
    meaning: str
    remedy: str


CODES = {
    "D01": Code(
        title="usable gradients",
        critical=True,
        threshold="fails above 1 % of the probed samples without a gradient under every loss",
        meaning="Where the gradient is zero, not a number or below 1e-12, gradient attacks stand still: "
        "the model may look robust only because its gradients are masked.",
        remedy="Find the operation that cuts the gradient (rounding, sign, detach, a saturated output) and "
        "attack through a differentiable stand-in for it; trust only gradient-free attacks until then.",
    ),
    "D03": Code(
        title="saturated outputs",
        critical=False,
        threshold="warns above 5 % of samples with a top probability of exactly 1; fails with no margin loss",
        meaning="The softmax is exactly 1 in float32, so the cross-entropy has no gradient; typical of "
        "distillation at a high temperature and of overconfident networks.",
        remedy="Use attacks with the margin or DLR loss, which do not saturate; the built-in suites do.",
    ),
    "D04": Code(
        title="form of the output",
        critical=False,
        threshold="warns when a model with gradients does not return plain logits",
        meaning="Losses are computed on logits. Other outputs are converted, and probabilities lose "
        "what rounding took from them.",
        remedy="Let the model return its logits, before any softmax or sigmoid.",
    ),
    "D07": Code(
        title="silent successes",
        critical=False,
        threshold="warns at any sample",
        meaning="An attack visited an adversarial point and then returned another one. The harness kept "
        "the point, so the figures are right; the attack alone would have reported too much robustness.",
        remedy="Nothing for this report. The attack should keep its first success.",
    ),
    "D10": Code(
        title="stronger attacks win",
        critical=True,
        threshold="fails above 0.5 % of the probed samples; warns at any",
        meaning="Samples that one gradient step breaks must fall to many, and neither these steps nor random "
        "points may break what the whole suite could not: otherwise its attacks are not optimizing.",
        remedy="Raise steps and restarts; look for randomness or masked gradients in the model.",
    ),
    "D12": Code(
        title="nested budgets",
        critical=True,
        threshold="fails above 0.5 % of the samples; warns at any",
        meaning="A sample that breaks within a smaller budget breaks within a larger one. The suite missed "
        "such samples until the curve found them at a smaller budget; they are counted as broken.",
        remedy="Raise steps and restarts of the suite: its attacks overlook nearby adversarial inputs.",
    ),
    "D13": Code(
        title="unbounded attack",
        critical=True,
        threshold="fails when more than the share of the largest class still stands",
        meaning="With a budget that reaches every valid input, all inputs can be made alike, so no model "
        "can get more than its largest class right. What stands beyond that was missed by the attack.",
        remedy="The gradients lead nowhere (see D01), or the model rejects or transforms its input in a "
        "way the attack does not see. Do not use the robust accuracy of this report.",
    ),
    "D19": Code(
        title="confirmed evidence",
        critical=True,
        threshold="fails above 0.5 % of the samples with a claim that was not confirmed; warns at any",
        meaning="Every adversarial input is evaluated again outside the attack, in another batch, with its "
        "distance and range checked. A claim that does not hold is not counted, which flatters the model.",
        remedy="Look for randomness or batch-dependent layers in the model; use float64 inputs.",
    ),
}
