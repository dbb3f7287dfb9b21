"""The report as one HTML page: no script, nothing loaded, every text escaped."""

from __future__ import annotations

import base64
import binascii
import functools
import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from . import privacy_text, text
from .federated import federated_lines
from .model import Report
from .parts import ClassResult, Fragile, Picture, ThreatResult

__all__ = ["framed", "page", "rendered"]

# All pictures together, in characters of base64; with it the page stays below 3 MB.
_PICTURES = 2_000_000
_MOST_CLASSES = 40
_PIXELS = 96

_TONES = {
    "good": ("PASS", "PASSED"),
    "warn": ("WARN", "SKIPPED", "NOT MEASURED", "skipped", "partial"),
    "bad": ("FAIL", "FAILED"),
}


def page(report: Report) -> str:
    """Render the page; the same report gives the same bytes."""
    return rendered(
        "report.html.j2",
        report=report,
        scores=_scores(report),
        conditions=text.worst_first(report.gate.conditions),
        charts=[_chart(report, threat, index) for index, threat in enumerate(report.threats)],
        classes=_classes(report),
        galleries=list(_galleries(report)),
        diagnostics=text.diagnostics_worst_first(report.threats),
        facts=list(_facts(report)),
        heading=text.heading(report),
        roc=_roc(report),
        class_name=functools.partial(_class_name, report.target.class_names),
    )


def rendered(template: str, **values: Any) -> str:
    """Render a template of this package, every text escaped."""
    page_: str = _environment().get_template(template).render(**values)
    return page_


def framed(report: Report) -> str:
    """Wrap the page in a frame that can run nothing, for a notebook."""
    source = html.escape(page(report))
    title = html.escape(f"{text.heading(report)} {text.plain(report.target.name)}")
    return (
        f'<iframe sandbox srcdoc="{source}" title="{title}" '
        'style="width:100%;height:42rem;border:1px solid #999"></iframe>'
    )


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("robustml.report")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_inert,
    )
    environment.filters |= {
        "count": text.count,
        "estimate": text.estimate,
        "is_small": _is_small,
        "limits": privacy_text.limits,
        "number": text.number,
        "per_sample": text.per_sample,
        "percent": text.percent,
        "rate": privacy_text.rate,
        "rate_name": privacy_text.rate_name,
        "ratio": _ratio,
        "readable": _readable,
        "value": _value,
    }
    environment.globals |= {
        "asked": text.asked,
        "attack_note": text.attack_note,
        "condition_status": text.condition_status,
        "federated_lines": federated_lines,
        "gate_status": text.gate_status,
        "interval": _interval,
        "privacy_lines": privacy_text.privacy_lines,
        "tone": _tone,
        "style": Markup(loader.get_source(environment, "report.css")[0]),  # noqa: S704 - our own file
    }
    return environment


def _inert(value: Any) -> Any:
    """Drop control and direction characters from all that is shown; what is HTML already stays as it is."""
    return text.plain(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _tone(word: str) -> str:
    return next((tone for tone, words in _TONES.items() if word in words), "")


def _interval(low: float, high: float) -> str:
    return f"[{low:.1f}, {high:.1f}]"


def _ratio(part: int, whole: int) -> str:
    return text.percent(part / whole) if whole else "-"


def _value(number: float) -> str:
    return f"{number:.6g}"


def _readable(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Options as people read them: text bare, everything else as JSON, long lists cut."""
    pairs = []
    for name, value in sorted(data.items()):
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        pairs.append((name, shown if len(shown) <= 400 else f"{shown[:400]}..."))
    return pairs or [("none", "")]


def _class_name(names: list[str], label: int) -> str:
    return names[label] if 0 <= label < len(names) else str(label)


def _is_small(picture: Picture) -> bool:
    """Whether to enlarge without smoothing: the width stands in bytes 16 to 19 of every PNG file."""
    try:
        header = base64.b64decode(picture.original[:32])
    except binascii.Error:
        return True
    return int.from_bytes(header[16:20], "big") <= _PIXELS


def _scores(report: Report) -> list[tuple[str, Any, str]]:
    scores = report.scores
    return [
        ("Evasion", scores.evasion, "of 100 samples withstand every attack under every threat model"),
        ("Corruption", scores.corruption, "of 100: mean accuracy under common corruptions"),
        ("Privacy", scores.privacy, "of 100: 1 minus the highest membership advantage, at its upper limit"),
        ("Overall", scores.overall, "the weakest of the scores"),
    ]


def _chart(report: Report, threat: ThreatResult, index: int) -> Any:
    from markupsafe import Markup

    from .charts import security_curve

    if not threat.curve:
        return None
    upper = text.estimate(threat.robust_accuracy.upper)
    title = f"Security curve: robust accuracy at the tested eps {text.number(threat.eps)} is {upper}"
    chance = 1 / max(report.target.classes, 1)
    if threat.robust_accuracy.lower:
        title += f", certified {text.estimate(threat.robust_accuracy.lower)}"
    svg = security_curve(
        threat.curve,
        eps=threat.eps,
        chance=chance,
        name=f"curve{index}",
        title=title,
        certified=threat.certified,
    )
    return Markup(svg)  # noqa: S704 - drawn from numbers, its words escaped there


def _roc(report: Report) -> Any:
    from markupsafe import Markup

    from .roc import roc_chart

    section = report.privacy.membership if report.privacy is not None else None
    curves = [attack for attack in section.attacks if attack.roc.fpr] if section is not None else []
    if section is None or not curves:
        return None
    most = section.strongest
    title = f"Membership attacks: the highest AUC is {text.number(most.auc.value)}, of {most.auc_by}"
    svg = roc_chart(curves, name="roc", title=title)
    return Markup(svg)  # noqa: S704 - drawn from numbers, its words escaped there


@dataclass(frozen=True)
class _ClassRow:
    name: str
    total: int
    clean: float | None
    robust: list[float | None]

    @property
    def worst(self) -> float:
        return min((fraction for fraction in self.robust if fraction is not None), default=1.0)


@dataclass(frozen=True)
class _ClassTable:
    threats: list[str]
    rows: list[_ClassRow]
    left_out: int
    weakest: str


def _classes(report: Report) -> _ClassTable:
    """One row per class with a column per threat model."""
    results = [{row.label: row for row in threat.per_class} for threat in report.threats]
    rows = [
        _ClassRow(
            name=row.name,
            total=row.total,
            clean=_fraction(row.correct, row.total),
            robust=[_robust(result.get(row.label)) for result in results],
        )
        for row in report.clean.per_class
    ]
    names = [threat.name for threat in report.threats]
    weakest = sorted(rows, key=lambda row: row.worst)
    sentence = ""
    if weakest and weakest[0].worst < 1:
        sentence = (
            f"The weakest class is {weakest[0].name}: robust accuracy {text.percent(weakest[0].worst)}."
        )
    shown = rows if len(rows) <= _MOST_CLASSES else weakest[:_MOST_CLASSES]
    return _ClassTable(names, shown, len(rows) - len(shown), sentence)


def _robust(row: ClassResult | None) -> float | None:
    return None if row is None or row.robust is None else _fraction(row.robust, row.total)


def _fraction(part: int, whole: int) -> float | None:
    return min(part / whole, 1.0) if whole else None


@dataclass(frozen=True)
class _Gallery:
    threat: ThreatResult
    pictured: list[Fragile]
    listed: list[Fragile]
    left_out: int


def _galleries(report: Report) -> Iterator[_Gallery]:
    """The fragile inputs of each threat model, as many as the page can carry."""
    for threat in report.threats:
        room = _PICTURES // len(report.threats)
        pictured = []
        with_picture = [item for item in threat.fragile if item.picture is not None]
        for item in with_picture:
            picture = item.picture
            assert picture is not None
            room -= len(picture.original) + len(picture.adversarial) + len(picture.difference)
            if room < 0:
                break
            pictured.append(item)
        listed = [item for item in threat.fragile if item.picture is None]
        yield _Gallery(threat, pictured, listed, len(with_picture) - len(pictured))


def _facts(report: Report) -> Iterator[tuple[str, str]]:
    model, data = report.target.model, report.target.data
    yield from text.asked(report).items()
    yield "Seed", str(report.seed)
    yield "Time", f"{report.seconds:,.1f} s"
    yield "Model", f"{model.name}, outputs {model.outputs}, access {model.access}"
    if model.parameters is not None:
        yield "Parameters", text.count(model.parameters)
    yield "Model SHA-256", model.sha256 or "not known: a black box"
    yield "Data", f"{data.name}, {text.count(data.samples)} samples, {report.target.classes} classes"
    yield "Data SHA-256", data.sha256
    yield "robustml", report.robustml
    yield from sorted(report.environment.items())
