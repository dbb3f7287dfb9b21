"""Reports as a stress test of handwritten digits would make them; figures are made up but consistent."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from robustml.report.model import (
    AttackResult,
    Bounds,
    Change,
    ClassResult,
    Clean,
    Condition,
    CurvePoint,
    Data,
    Diagnostic,
    Estimate,
    EvidenceFile,
    Fragile,
    Gate,
    ModelInfo,
    Passes,
    Picture,
    Report,
    Samples,
    Score,
    Scores,
    TargetInfo,
    ThreatResult,
)

CLASSES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CLEAN = (38, 35, 36, 34, 35, 36, 35, 34, 30, 33)
TOTAL = 36


def estimate(count: int, total: int) -> Estimate:
    """A proportion with a normal interval: exact enough to look at."""
    value = count / total
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.25 / total) / total)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return Estimate(value=value, low=low, high=high, confidence=0.95, count=count, total=total)


def score(figure: Estimate) -> Score:
    return Score(value=100 * figure.value, low=100 * figure.low, high=100 * figure.high)


def png(pixels: np.ndarray) -> str:
    """Encode (height, width) grey levels in [0, 1]."""
    file = io.BytesIO()
    Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def picture(index: int, size: int = 8) -> Picture:
    rows, columns = np.mgrid[0:size, 0:size] / (size - 1)
    ring = np.exp(-((((rows - 0.5) ** 2 + (columns - 0.5) ** 2) ** 0.5 - 0.3 - index / 100) ** 2) / 0.01)
    change = 0.1 * np.sign(np.sin(7 * rows + 3 * columns + index))
    return Picture(original=png(ring), adversarial=png(ring + change), difference=png(0.5 + 5 * change))


def attack(name: str, attempted: int, broken: int, **changes: Any) -> AttackResult:
    facts: dict[str, Any] = {
        "id": name,
        "attack": name.partition("-")[0],
        "options": {"steps": 100, "restarts": 1, "loss": name.partition("-")[2] or "ce"},
        "access": "gradient",
        "status": "ran",
        "reason": None,
        "attempted": attempted,
        "broken": broken,
        "rescued": 0,
        "unconfirmed": 0,
        "passes": Passes(forward=attempted * 61, backward=attempted * 60),
        "seconds": attempted / 300,
    }
    return AttackResult(**{**facts, **changes})


def diagnostic(code: str, title: str, status: Any = "pass", **changes: Any) -> Diagnostic:
    facts: dict[str, Any] = {
        "critical": False,
        "value": 0.0,
        "threshold": "at most 0.01",
        "detail": f"{title}: nothing unusual was seen.",
        "meaning": "Attacks that follow the gradient are as strong here as they look.",
        "remedy": "Nothing to do.",
    }
    return Diagnostic(code=code, title=title, status=status, **{**facts, **changes})


def condition(expression: str, value: float | None, passed: bool, reason: str) -> Condition:
    figure = expression.partition(" ")[0]
    return Condition(expression=expression, figure=figure, value=value, passed=passed, reason=reason)


DIAGNOSTICS = [
    diagnostic("zero-gradient", "Share of samples with a vanishing gradient", critical=True),
    diagnostic("large-eps", "Robust accuracy at the largest budget", critical=True, threshold="at most 0.05"),
    diagnostic(
        "slow-start",
        "Samples broken in the last tenth of the steps",
        "warn",
        value=0.021,
        detail="2.1 % of the samples broke only in the last tenth of the steps.",
        meaning="More steps would probably break more samples.",
        remedy="Run again with steps = 200.",
    ),
    diagnostic("black-box", "Score-based attack against gradient attack", "skipped", value=None),
]


def classes(robust: bool) -> list[ClassResult]:
    return [
        ClassResult(
            label=label,
            name=name,
            total=TOTAL + 2,
            correct=CLEAN[label],
            robust=(CLEAN[label] * (17 + label * 7 % 11)) // 30 if robust else None,
        )
        for label, name in enumerate(CLASSES)
    ]


def _curve(robust: int, share: float) -> int:
    return round(346 - (346 - robust) * share**0.7)


def threat(name: str, robust: int, **changes: Any) -> ThreatResult:
    norm, _, budget = name.partition(":")
    eps, total = float(budget), 380
    facts: dict[str, Any] = {
        "name": name,
        "norm": norm,
        "eps": eps,
        "adaptive": True,
        "robust_accuracy": Bounds(upper=estimate(robust, total), lower=None),
        "undecided": None,
        "attacks": [
            attack("apgd-ce", 346, 330 - robust),
            attack("apgd-dlr", robust + 16, 12, rescued=2),
            attack("square", robust + 4, 4, access="score", passes=Passes(forward=1_204_000), unconfirmed=1),
            attack("fab", 0, 0, status="skipped", reason="the time budget was spent", passes=Passes()),
        ],
        "curve": [
            CurvePoint(eps=eps * share, robust_accuracy=estimate(_curve(robust, share), total))
            for share in (0, 0.25, 0.5, 0.75, 1)
        ]
        + [
            CurvePoint(eps=eps * 1.5, robust_accuracy=estimate(robust // 3, total)),
            CurvePoint(eps=eps * 2, robust_accuracy=estimate(robust // 12, total)),
        ],
        "per_class": classes(robust=True),
        "diagnostics": DIAGNOSTICS,
        "outcomes": "s" * robust + "b" * (346 - robust) + "m" * 34,
        "fragile": [
            Fragile(
                sample=17 * index,
                label=index % 10,
                predicted=(index * 3 + 1) % 10,
                attack="apgd-ce",
                distance=eps * (index + 1) / 40,
                eps=eps / 4,
                picture=picture(index),
            )
            for index in range(12)
        ],
    }
    return ThreatResult(**{**facts, **changes})


def report(**changes: Any) -> Report:
    """A trusted report with two threat models and a gate of which one condition failed."""
    evasion = estimate(137, 380)
    facts: dict[str, Any] = {
        "robustml": "0.1.0",
        "created": "2026-02-03T04:05:06Z",
        "seconds": 12.5,
        "seed": 0,
        "confidence": 0.95,
        "suite": "standard",
        "command": "robustml stress digits --threat linf:0.1 --threat l2:0.5 --seed 0 --out runs/digits",
        "environment": {"device": "cpu", "python": "3.11.9", "torch": "2.13.0", "platform": "Linux-x86_64"},
        "target": TargetInfo(
            name="digits",
            model=ModelInfo(
                name="digits-cnn", access="gradient", outputs="logits", parameters=21_930, sha256="ab" * 32
            ),
            data=Data(name="digits test split", samples=380, sha256="cd" * 32),
            inputs={"shape": [1, 8, 8], "bounds": [0.0, 1.0], "dtype": "float32"},
            classes=10,
            class_names=CLASSES,
        ),
        "clean": Clean(accuracy=estimate(346, 380), per_class=classes(robust=False)),
        "threats": [threat("linf:0.1", 137), threat("l2:0.5", 201)],
        "scores": Scores(evasion=score(evasion), overall=score(evasion)),
        "trusted": True,
        "distrust": [],
        "verdict": "Of 380 test inputs, 137 survive every attack within linf:0.1 and l2:0.5: 36.1 %.",
        "gate": Gate(
            conditions=[
                condition("clean >= 85", 88.2, True, "the lower end of its interval is 88.2"),
                condition("evasion >= 40", 31.2, False, "the lower end of its interval is 31.2"),
                condition("privacy >= 80", None, False, "the figure was not measured"),
            ],
            passed=False,
        ),
        "samples": Samples(
            ids=list(range(380)),
            evidence=[EvidenceFile(path="evidence/linf-0.1.safetensors", sha256="ef" * 32, samples=209)],
        ),
    }
    return Report(**{**facts, **changes})


def untrusted() -> Report:
    """A report whose gradient was masked."""
    masked = diagnostic(
        "zero-gradient",
        "Share of samples with a vanishing gradient",
        "fail",
        critical=True,
        value=0.62,
        detail="The gradient of 62.0 % of the samples is exactly zero.",
        meaning="Gradient attacks had nothing to follow, so robust accuracy is overstated.",
        remedy="Attack with surrogates = true, or through a score-based attack.",
    )
    return report(
        trusted=False,
        distrust=["linf:0.1: the gradient of 62.0 % of the samples is exactly zero."],
        threats=[threat("linf:0.1", 137, diagnostics=[*DIAGNOSTICS[1:], masked])],
    )


def tabular() -> Report:
    """A report on named features, attacked without the guard that it ships with."""
    fragile = [
        Fragile(
            sample=3,
            label=0,
            predicted=1,
            attack="apgd-ce",
            distance=0.004,
            eps=0.025,
            changes=[
                Change(feature="income", before=41_200.0, after=41_650.0),
                Change(feature="age", before=31, after=32),
            ],
        )
    ]
    lower = Bounds(upper=estimate(137, 380), lower=estimate(90, 380))
    return report(
        threats=[
            threat(
                "linf:0.1", 137, fragile=fragile, adaptive=False, robust_accuracy=lower, undecided=47 / 380
            )
        ]
    )


def bare() -> Report:
    """A report of a run in which nothing but the clean pass was finished."""
    nothing = threat(
        "linf:0.1",
        137,
        robust_accuracy=Bounds(upper=None),
        attacks=[
            attack("apgd-ce", 0, 0, status="skipped", reason="the model gives no gradient", passes=Passes())
        ],
        curve=[],
        per_class=[],
        diagnostics=[],
        fragile=[],
        outcomes="",
    )
    return report(
        threats=[nothing],
        scores=Scores(),
        trusted=False,
        distrust=["linf:0.1: no attack ran."],
        gate=Gate(conditions=[], passed=None),
        samples=Samples(ids=[], evidence=[]),
    )


def named(name: str) -> Report:
    """The report with one hostile name wherever a user's text can come from."""
    base = report().to_json()
    return Report.from_json(_renamed(base, name))


def _renamed(text: str, name: str) -> str:
    import json

    data = json.loads(text)
    data["target"]["name"] = data["target"]["model"]["name"] = data["target"]["data"]["name"] = name
    data["target"]["class_names"] = [name] * 10
    data["target"]["inputs"][name] = name
    data["command"] = data["suite"] = data["verdict"] = data["created"] = name
    data["environment"][name] = name
    data["distrust"] = [name]
    data["trusted"] = False
    data["samples"]["evidence"][0].update(path=name, sha256=name)
    for row in data["clean"]["per_class"]:
        row["name"] = name
    for condition in data["gate"]["conditions"]:
        condition.update(expression=name, figure=name, reason=name)
    for result in data["threats"]:
        result.update(name=name, norm=name)
        for row in result["per_class"]:
            row["name"] = name
        for row in result["attacks"]:
            row.update(id=name, attack=name, reason=name, options={name: name})
        for row in result["diagnostics"]:
            row.update(dict.fromkeys(("code", "title", "threshold", "detail", "meaning", "remedy"), name))
        for row in result["fragile"]:
            row["attack"] = name
            row["changes"] = [{"feature": name, "before": 0.0, "after": 1.0}]
    return json.dumps(data)
