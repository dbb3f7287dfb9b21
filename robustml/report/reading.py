"""Reading a report back: anything that is not one becomes one line, whatever it is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from .. import __version__
from ..errors import InputError
from ..schema import validated
from .model import SCHEMA, Report
from .text import plain

__all__ = ["load", "read"]

_LONGEST = 600


def load(path: str | Path) -> Report:
    """See `Report.load`."""
    file = Path(path)
    try:
        file = file / "report.json" if file.is_dir() else file
        text = file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {plain(str(path))!r}: {reason}") from None
    return read(text, where=str(file))


def read(text: str | bytes, *, where: str) -> Report:
    """See `Report.from_json`."""
    where = plain(where)
    data = _parsed(text, where)
    if not isinstance(data, dict):
        raise InputError(f"{where} holds {_article(data)}, not a report")
    _check_schema(data.get("schema"), where)
    try:
        return validated(Report, data, where=where)
    except InputError as error:
        raise InputError(_one_line(str(error)) + _written_by(data.get("robustml"))) from None


def _parsed(text: str | bytes, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply") from None
    except UnicodeDecodeError:
        raise InputError(f"{where} is not UTF-8 text") from None
    except ValueError as error:
        raise InputError(_one_line(f"{where} is not JSON: {error}")) from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that JSON has")


def _check_schema(schema: Any, where: str) -> None:
    name, number = SCHEMA.split("/")
    if schema is None:
        raise InputError(f"{where} is not a report: it has no schema; a report says {SCHEMA!r}")
    pattern = rf"{re.escape(name)}/([1-9][0-9]{{0,8}})"
    match = re.fullmatch(pattern, schema) if isinstance(schema, str) else None
    if match is None:
        given = _one_line(repr(schema))[:60]
        raise InputError(f"{where} is not a report: schema={given} is not {SCHEMA!r}")
    if int(match[1]) > int(number):
        raise InputError(
            f"{where} has schema {schema!r}, newer than {SCHEMA!r} of robustml {__version__}; upgrade it"
        )


def _written_by(version: Any) -> str:
    """Point at another version as the likely reason why a report cannot be read."""
    if not isinstance(version, str) or version == __version__:
        return ""
    return f"; it was written by robustml {plain(version)[:40]}, this is {__version__}"


def _one_line(message: str) -> str:
    message = plain(message)
    return message if len(message) <= _LONGEST else f"{message[: _LONGEST - 3]}..."


def _article(data: Any) -> str:
    names = {list: "a list", str: "a string", bool: "a truth value", type(None): "nothing"}
    return names.get(type(data), "a number")
