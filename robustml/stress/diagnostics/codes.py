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
    "D02": Code(
        title="honest gradients",
        critical=True,
        threshold="warns when half of the probed samples are off by more than 10 %; fails if, besides, the "
        "loss rises neither along the gradient nor along the suite's surrogates for a quarter of them",
        meaning="The gradient is held against differences of the loss along 8 directions. Where they "
        "disagree, the backward pass is not the derivative of the forward pass: a straight-through "
        "estimator, a quantizer, a hand-written backward. If it leads nowhere, attacks are sent astray.",
        remedy="Attack through a correct derivative or a stand-in of your own; rely on score-based and "
        "decision-based attacks until then.",
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
    "D05": Code(
        title="randomness",
        critical=True,
        threshold="fails when random numbers come from outside of torch",
        meaning="A model that answers differently when asked again is judged by the vote of many draws, and "
        "attacks average over draws. Random numbers of torch can be drawn again for a replay; those of "
        "NumPy, of Python or of a service cannot.",
        remedy="Draw the model's random numbers with torch, from its global generator.",
    ),
    "D06": Code(
        title="mode and state",
        critical=True,
        threshold="fails at a layer in training mode, a weight or buffer that a forward pass changes, or an "
        "answer that is not that of the clean pass; warns at other attributes that change, and at gradients "
        "computed inside of the forward pass",
        meaning="A model that changes while it is used is another model for each attack: what withstood may "
        "have been asked at another time. Gradients computed inside (purification, test-time optimization) "
        "are not differentiated through by attacks.",
        remedy="Put every layer in evaluation mode, freeze running statistics and counters; unroll an inner "
        "optimization, so that attacks see it.",
    ),
    "D07": Code(
        title="silent successes",
        critical=False,
        threshold="warns at any sample",
        meaning="An attack visited an adversarial point and then returned another one. The harness kept "
        "the point, so the figures are right; the attack alone would have reported too much robustness.",
        remedy="Nothing for this report. The attack should keep its first success.",
    ),
    "D08": Code(
        title="complete optimization",
        critical=False,
        threshold="warns when, for more than 5 % of the probed survivors, the last 10 steps still raise the "
        "margin by more than 5 % of its whole rise; fails if that holds with 95 % confidence",
        meaning="The loss of an unfinished attack is still rising (Pintor et al. 2022, indicator 4): with "
        "more steps it may succeed.",
        remedy="Raise the steps of the strongest attack of the suite.",
    ),
    "D09": Code(
        title="doubled effort",
        critical=True,
        threshold="fails when the strongest attack with twice its steps, from a new start, breaks more than "
        "0.5 % of the probed survivors with 95 % confidence; warns at any",
        meaning="An attack that has converged gains nothing from more steps or another start. What is broken "
        "is counted, but the samples that were not probed may be as weak.",
        remedy="Raise steps and restarts until doubling them changes nothing, or use the suite thorough.",
    ),
    "D10": Code(
        title="stronger attacks win",
        critical=True,
        threshold="fails above 0.5 % of the probed samples (5 % for a randomized model); warns at any",
        meaning="Samples that one gradient step breaks must fall to many, and neither these steps nor random "
        "points may break what the whole suite could not: otherwise its attacks are not optimizing.",
        remedy="Raise steps and restarts; look for randomness or masked gradients in the model.",
    ),
    "D11": Code(
        title="black box against white box",
        critical=True,
        threshold="fails when attacks without gradients break more than 0.2 % of the samples that withstood "
        "gradient attacks, with 95 % confidence; warns at any",
        meaning="Attacks that see less must not find more. Where they do, the gradients are masked or the "
        "gradient attacks too weak, and the figure is too kind.",
        remedy="Look at the samples named; see D01, D02 and D22 for the reason, and attack through a "
        "stand-in for the operation that hides the gradient.",
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
    "D14": Code(
        title="transfer",
        critical=True,
        threshold="fails when inputs made against the twin break more than 0.5 % of the probed samples that "
        "stood, with 95 % confidence; warns at any",
        meaning="What fools an undefended or an earlier model must not fool this one where attacks on itself "
        "could not: otherwise these do not see what it computes.",
        remedy="As for D11. Give the undefended model as `twin` wherever there is one.",
    ),
    "D15": Code(
        title="averaging over randomness",
        critical=True,
        threshold="fails when four times the draws per step still break more than 0.5 % of the probed "
        "samples, or one fixed draw withstands on 10 % more of them than the vote; warns when twice do any",
        meaning="Randomness hides the way from an attack that averages over too few draws. With the "
        "randomness frozen an attack must break at least what it breaks against the vote, and with more "
        "draws per step it must break nothing new.",
        remedy="Run again with more draws per step (--eot, or eot in the target file). If the frozen model "
        "withstands, its gradients are masked by something else (see D01).",
    ),
    "D16": Code(
        title="components alone",
        critical=False,
        threshold="fails when a score-based attack breaks 10 % of the samples that one along the derivative "
        "could not; warns at any",
        meaning="The model behind one guard at a time, attacked along the derivative that the guard declares "
        "and then without it. What only the second breaks says that the derivative leads astray.",
        remedy="Correct the surrogate of the guard that is named.",
    ),
    "D17": Code(
        title="binarization test",
        critical=True,
        threshold="fails when the suite finds less than 95 % of the inputs that must exist, with 95 % "
        "confidence; warns when it finds less",
        meaning="For each sample a new linear head on the penultimate features separates one point at the "
        "edge of the ball from random ones within (Zimmermann et al. 2022). An adversarial input exists, so "
        "a suite that does not find it says nothing about the robustness of the model behind these features.",
        remedy="Find what keeps the attacks from following these features (D01, D02, D22); raise the steps.",
    ),
    "D18": Code(
        title="oblivious against adaptive",
        critical=False,
        threshold="reported, not judged",
        meaning="The gap between an attack that follows the model's own gradient and one that goes around "
        "what hides it. The gap is blinding, not robustness.",
        remedy="Quote the adaptive figure only.",
    ),
    "D19": Code(
        title="confirmed evidence",
        critical=True,
        threshold="fails above 0.5 % of the samples (5 % for a randomized model) with a claim that was not "
        "confirmed; warns at any",
        meaning="Every adversarial input is evaluated again outside the attack, in another batch, with its "
        "distance and range checked. A claim that does not hold is not counted, which flatters the model.",
        remedy="Look for randomness or batch-dependent layers in the model; use float64 inputs.",
    ),
    "D20": Code(
        title="smooth loss",
        critical=False,
        threshold="warns when the margin changes by more than 10 % on average within two steps of an attack",
        meaning="On a rough loss a gradient holds for less than a step (Pintor et al. 2022, indicator 2), so "
        "gradient attacks stumble.",
        remedy="Average the gradient over random points nearby, and rely on attacks without gradients.",
    ),
    "D21": Code(
        title="complete record",
        critical=True,
        threshold="fails when an attack that ran has no options, passes or evidence on record; warns when "
        "the model has no digest, or the suite switches critical diagnostics off",
        meaning="A reviewer needs the threat model, every option, the passes spent, the seed, the versions "
        "and a counterexample for each broken sample to judge the figures.",
        remedy="Run the test with this library from start to end; give a black box its digest.",
    ),
    "D22": Code(
        title="surrogate gradients",
        critical=True,
        threshold="clear if p < 0.05 (exact McNemar) and more than 0.5 % of the probed samples: then warns "
        "if the suite attacks through surrogates, fails if not",
        meaning="The same attack was run with the true gradient and with smooth stand-ins of the operations "
        "that hide it (ReLU, max-pool, clamp, round, sign, comparison, cast, detach). Where the stand-ins "
        "break more, the gradients are masked by the operations that are named.",
        remedy='Attack with gradient = "smooth" or with the attack relay, as the built-in suites do. What '
        "only the stand-ins break is broken all the same: masking is no defense.",
    ),
    "D23": Code(
        title="certificates against attacks",
        critical=True,
        threshold="fails at any certified sample that an attack broke within its radius and that loses the "
        "recount, too; warns where it only lost the vote",
        meaning="Within a certified radius nothing can change the answer of the smoothed classifier. What "
        "broke there is asked about again, with as many fresh draws as a certificate takes. A label that is "
        "surely no majority among them refutes the certificate; otherwise the few draws of the vote were "
        "luck. Neither counts as certified.",
        remedy="After a failure trust no certificate of this model: what is behind the noise is not the same "
        "function at each call, or the noise is not what it says. After a warning raise draws.",
    ),
}
