from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from robustml.report import Report
from robustml.report.schema_file import PATH, main, schema_text
from tests.report.sample import report

ROOT = Path(__file__).resolve().parents[2]


def test_file_agrees_with_the_model() -> None:
    written = (ROOT / PATH).read_text(encoding="utf-8")
    assert written == schema_text(), "run: python -m robustml.report.schema_file"


def test_schema_names_every_key_of_a_report() -> None:
    schema = json.loads(schema_text())
    assert set(schema["properties"]) == set(json.loads(report().to_json()))
    assert schema["properties"]["schema"]["const"] == "robustml.report/1"
    assert schema["additionalProperties"] is False
    assert {field.alias or name for name, field in Report.model_fields.items()} == set(schema["required"])


def test_command_writes_the_file(tmp_path: Path) -> None:
    assert main([str(tmp_path / "deep" / "schema.json")]) == 0
    assert (tmp_path / "deep" / "schema.json").read_text(encoding="utf-8") == schema_text()


def test_importing_the_report_loads_no_renderer() -> None:
    program = (
        "import sys, robustml.report; robustml.report.Report; "
        "print([m for m in ('torch', 'matplotlib', 'jinja2', 'rich', 'numpy') if m in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
