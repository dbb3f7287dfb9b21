"""Run attack libraries against the cases of `known_defects`, and print the result as Markdown.

`python benchmarks/conformance.py` asks every library that is installed; `--library NAME`, once or several
times, chooses some, and `--case NAME` some of the cases. Nothing but robustml and its dependencies is needed:
a library that is missing is shown as such, with the line that installs it. It takes some minutes on one core,
most of them in the ensemble of ART. The exit status is 1 if robustml fails a case.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from known_defects import CASES, Case, Result, run_case
from known_defects.adapters import ADAPTERS

SHOWN = {"passed": "pass", "failed": "**fail**", "unsupported": "\N{EN DASH}"}


@dataclass
class Column:
    """One library of the table."""

    title: str
    install: str
    missing: str | None = None
    results: dict[str, Result] = field(default_factory=dict)


def column(name: str, cases: Sequence[Case]) -> Column:
    """Run the cases against a library, if it can be imported."""
    kind = ADAPTERS[name]
    try:
        adapter = kind()
    except ImportError as error:
        return Column(kind.title, kind.install, missing=str(error))
    filled = Column(f"{adapter.title} {adapter.version}", adapter.install)
    for case in cases:
        print(f"{adapter.title}: {case.name}", file=sys.stderr)
        filled.results[case.name] = run_case(case, adapter)
    return filled


def table(columns: list[Column], cases: Sequence[Case]) -> list[str]:
    lines = ["| defect | case | " + " | ".join(c.title for c in columns) + " |"]
    lines.append("|---|---|" + "---|" * len(columns))
    for case in cases:
        cells = [SHOWN[c.results[case.name].status] if c.results else "not installed" for c in columns]
        lines.append(f"| {case.defect} | `{case.name}` | " + " | ".join(cells) + " |")
    return lines


def seen(columns: list[Column], status: str, heading: str) -> list[str]:
    """The figures behind one kind of cell."""
    found = [
        f"- {c.title}, `{name}`: {result.detail}."
        for c in columns
        for name, result in c.results.items()
        if result.status == status
    ]
    return ["", heading, "", *found] if found else []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--library", action="append", choices=list(ADAPTERS), help="default: all of them")
    parser.add_argument("--case", action="append", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--passes", action="store_true", help="show the figures of what passes as well")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    cases = [case for case in CASES if not given.case or case.name in given.case]
    columns = [column(name, cases) for name in given.library or ADAPTERS]
    lines = table(columns, cases)
    lines += seen(columns, "failed", "What failed:")
    lines += seen(columns, "unsupported", "What there was nothing to ask for:")
    if given.passes:
        lines += seen(columns, "passed", "What passed:")
    missing = [f"- {c.title}: `{c.install}` ({c.missing})." for c in columns if c.missing]
    lines += ["", "Not installed:", "", *missing] if missing else []
    print("\n".join(lines))
    ours = [c for c in columns if c.title.startswith(ADAPTERS["robustml"].title)]
    return int(any(result.status == "failed" for c in ours for result in c.results.values()))


if __name__ == "__main__":
    sys.exit(main())
