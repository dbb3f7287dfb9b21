"""Where a run goes, what it may replace there, and the command that goes on with it."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import InputError, RunError

if TYPE_CHECKING:
    from ..targets import Target

__all__ = ["building", "chosen_folder", "discard", "holds_run", "replacing", "resume_line"]

_GIVEN = {click.core.ParameterSource.COMMANDLINE, click.core.ParameterSource.ENVIRONMENT}
_PLANS = ("plan.json", "audit.json")
_SECTIONS = ("privacy", "privacy.json", "federated.json")
_PARTS = {*_PLANS, *_SECTIONS, "journal.jsonl", "evidence", "report.json", "report.html"}
# What a killed run may leave beside the file that it was writing.
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.tmp")


def chosen_folder(target: Target, options: dict[str, Any]) -> tuple[Path, bool]:
    """Where the run goes, and whether it goes on there.

    Raises:
        InputError: if --out and --resume name different folders.
    """
    out, resume = options["out"], options["resume"]
    source = click.get_current_context().get_parameter_source
    if out is not None and resume is not None and out != resume:
        if source("out") == source("resume"):
            raise InputError("--out and --resume name different folders; give one of them")
        # One comes from the environment, and what is given on the command line overrides it.
        if source("out") is click.core.ParameterSource.COMMANDLINE:
            resume = None
    if resume is not None:
        return resume, True
    if out is not None:
        return out, False
    stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    # Shards are often started in the same second.
    shard = f"-shard-{options['shard'].replace('/', '-of-')}" if options["shard"] else ""
    return Path("runs") / f"{target.name}-{stamp}{shard}", False


def holds_run(out: Path) -> bool:
    """Whether there is a run to go on with."""
    return any((out / plan).is_file() for plan in _PLANS)


@contextlib.contextmanager
def replacing(out: Path, *, overwrite: bool) -> Iterator[None]:
    """Put the run that a folder holds aside, and remove it for good only when the next one has begun there.

    Raises:
        InputError: if the folder holds anything that is not part of a run.
    """
    aside = _put_aside(out) if overwrite and (out.exists() or out.is_symlink()) else None
    new = not out.exists()
    try:
        yield
    finally:
        if new and not holds_run(out):
            # It may have been made before the disk turned out to be full; nothing but empty folders goes.
            for folder in (out / "evidence", out):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            if aside is not None:
                aside.rename(out)
        elif aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def building(out: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted; it takes its place once everything in it is there.

    Raises:
        InputError: if there is something in that place.
    """
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise InputError(f"out={str(out)!r} already exists and is not empty; choose another")
    unfinished = out.with_name(f".{out.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        unfinished.rename(out)
    except OSError as error:
        raise RunError(f"cannot write {str(out)!r}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_aside(out: Path) -> Path:
    if stranger := _stranger(out):
        raise InputError(f"--overwrite refuses to remove {str(out)!r}: {stranger}")
    aside = out.with_name(f".{out.name}.{os.getpid()}.replaced")
    try:
        out.rename(aside)
    except OSError as error:
        raise InputError(f"cannot replace {str(out)!r}: {error.strerror or error}") from None
    return aside


def _stranger(out: Path) -> str | None:
    """Why a folder is not just a run, or None if it is."""
    if out.is_symlink() or not out.is_dir():
        return "it is a link" if out.is_symlink() else "it is a file"
    evidence = out / "evidence"
    inside = sorted(evidence.iterdir()) if evidence.is_dir() else []
    strangers = [
        *(path for path in sorted(out.iterdir()) if path.name not in _PARTS and not _is_leftover(path)),
        *(path for path in inside if path.suffix != ".safetensors" and not _is_leftover(path)),
    ]
    if strangers:
        return f"{str(strangers[0].relative_to(out))!r} is not part of a run"
    if any(path != evidence for path in out.iterdir()) and not _has_plan(out):
        return "it holds no run"
    return None


def _is_leftover(path: Path) -> bool:
    return _LEFTOVER.fullmatch(path.name) is not None


def _has_plan(out: Path) -> bool:
    for plan in _PLANS:
        with contextlib.suppress(OSError):
            content = (out / plan).read_bytes()[:1000]
            if b'"robustml.plan/' in content or b'"robustml.audit/' in content:
                return True
    return False


def discard(out: Path) -> None:
    """Remove a run that has just been begun and then refused."""
    shutil.rmtree(out, ignore_errors=True)


def resume_line(out: Path, *, flag: bool = False) -> str:
    """The command that goes on with the run in a folder: everything that was given, wherever it came from.

    Args:
        out: The folder.
        flag: Whether --resume is a flag beside --out, or names the folder itself.
    """
    context = click.get_current_context()
    words, arguments = ["robustml", str(context.command.name)], []
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) not in _GIVEN or name in {"out", "overwrite", "resume"}:
            continue
        value = context.params[name]
        if isinstance(parameter, click.Argument):
            arguments.append(str(value))
        elif isinstance(parameter, click.Option):
            words += _option_words(parameter, value)
    if arguments and arguments[0].startswith("-"):
        arguments.insert(0, "--")
    ending = ["--out", str(out), "--resume"] if flag else ["--resume", str(out)]
    return " ".join(map(_quoted, [*words, *ending, *arguments]))


def _option_words(option: click.Option, value: Any) -> list[str]:
    flag = option.opts[0]
    if option.is_flag:
        return [flag] if value else []
    values = [str(item) for item in (value if option.multiple else [value])]
    # A value that looks like an option has to hang on to its own.
    return [w for v in values for w in ([f"{flag}={v}"] if v.startswith("-") else [flag, v])]


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    # Terminals would act on the characters themselves; shells read them back from this form.
    escaped = "".join(c if c.isprintable() and c not in "\\'" else _escape(c) for c in word)
    return f"$'{escaped}'"


def _escape(character: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
