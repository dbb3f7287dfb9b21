"""What the documents show is accepted by the code: target files, suites, Python, links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from robustml.defenses.training.recipe import load_recipe
from robustml.inputs import InputSpec
from robustml.stress.suite import load_suite
from robustml.targets.file import read_target_file

ROOT = Path(__file__).resolve().parents[1]
GENERATED = {"_build", "examples", "_ext"}
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(
        p for p in (ROOT / "docs").rglob("*.md") if not GENERATED & set(p.relative_to(ROOT / "docs").parts)
    ),
]


def _blocks(language: str) -> list[object]:
    return [
        pytest.param(block, id=f"{path.relative_to(ROOT).as_posix()}-{number}")
        for path in DOCUMENTS
        for number, block in enumerate(
            re.findall(
                rf"^ *```{language}\n(.*?)^ *```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
            )
        )
    ]


@pytest.mark.parametrize("block", _blocks("toml"))
def test_toml_is_accepted(block: str, tmp_path: Path) -> None:
    data = tomllib.loads(block)
    file = tmp_path / "file.toml"
    file.write_text(block, encoding="utf-8")
    if "model" in data:
        assert read_target_file(file).model.classes == data["model"]["classes"]
    elif "objective" in data:
        assert load_recipe(str(file)).name == data["name"]
    elif "schema" in data:
        assert load_suite(str(file)).name == data["name"]
    elif "inputs" in data and "features" not in data["inputs"]:
        assert InputSpec.from_dict(data["inputs"]).shape == tuple(data["inputs"]["shape"])
    else:
        # A part of a file; the rest of one around it makes it whole.
        rest = {"model": 'factory = "m:f"\nclasses = 2', "inputs": "shape = [5]", "data": 'test = "t.npz"'}
        whole = "\n".join(f"[{name}]\n{lines}" for name, lines in rest.items() if name not in data)
        if "attack" in data:
            file.write_text(f'schema = 1\nname = "part"\n{block}', encoding="utf-8")
            assert load_suite(str(file)).attack
        else:
            file.write_text(f"schema = 1\n{whole}\n{block}", encoding="utf-8")
            assert read_target_file(file).schema_ == 1


@pytest.mark.parametrize("block", _blocks("python"))
def test_python_compiles(block: str) -> None:
    lines = block.splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    assert compile("\n".join(line[indent:] for line in lines), "document", "exec")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if not (path.parent / link).exists()] == []
