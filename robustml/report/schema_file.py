"""The JSON Schema of report.json, generated: `python -m robustml.report.schema_file` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..files import write_atomic
from .model import SCHEMA, Report

__all__ = ["PATH", "main", "schema_text"]

PATH = Path("docs", "schema", "report-1.json")


def schema_text() -> str:
    """The schema as JSON, the same bytes every time."""
    schema = Report.model_json_schema(by_alias=True, mode="serialization")
    # A writer leaves nothing out, not even what a reader could fill in.
    for model in (schema, *schema["$defs"].values()):
        model["required"] = sorted(model["properties"])
    schema |= {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        "title": "robustml report",
        "description": "What a stress test measured. Fractions are in [0, 1]; null is not measured.",
    }
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


def main(arguments: list[str]) -> int:
    """Write the schema to the path given, or to docs/schema/report-1.json below the working folder."""
    write_atomic(arguments[0] if arguments else PATH, schema_text())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
