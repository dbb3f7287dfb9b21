"""Running a user's factory: a function, named in a target file, that builds the model."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..errors import InputError, suggest

__all__ = ["cause", "load_factory"]

# Modules that factories have brought in, and the folder that each came from.
_imported: dict[str, Path] = {}


def load_factory(reference: str, base: Path) -> nn.Module:
    """Call a user's function that builds a model.

    What it prints goes to the error stream, and the random numbers that it draws from torch are the same
    on every call and leave the global generator as it was.

    Args:
        reference: "package.module:function" or "path/file.py:function"; the function takes no arguments.
        base: The folder that paths are relative to; modules are looked up there first, while this call lasts.

    Raises:
        InputError: naming the reference, what went wrong and the line of the user's file.
    """
    source, _, name = reference.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(
            f"factory {reference!r} is not of the form package.module:function or path/file.py:function"
        )
    base = base.resolve()
    with _on_path(source, base) as folders, contextlib.redirect_stdout(sys.stderr), _own_random_numbers():
        module = _attempt(reference, folders, lambda: _import(source, base))
        if not hasattr(module, name):
            names = [
                key for key, value in vars(module).items() if callable(value) and not key.startswith("_")
            ]
            hint = suggest(name, names) if names else ""
            raise InputError(f"factory {reference!r}: {source} has no {name!r}{hint}")
        factory = getattr(module, name)
        if isinstance(factory, nn.Module) or not callable(factory):
            raise InputError(
                f"factory {reference!r} is a {type(factory).__name__}, not a function that returns a model"
            )
        model = _attempt(reference, folders, factory)
    if not isinstance(model, nn.Module):
        raise InputError(f"factory {reference!r} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _import(source: str, base: Path) -> ModuleType:
    importlib.invalidate_caches()
    if not source.endswith(".py"):
        return _import_module(source, base)
    file = base / source
    if not file.is_file():
        raise InputError(f"{file} does not exist")
    # A name of its own, so that files of the same name in other folders are other modules.
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str, base: Path) -> ModuleType:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"there is no module {error.name!r} in {base}, nor is one installed") from None
        raise
    top = name.partition(".")[0]
    wanted = (base / f"{top}.py").is_file() or (base / top / "__init__.py").is_file()
    file = module.__file__
    if wanted and file and not Path(file).resolve().is_relative_to(base):
        # Python imports a name once; going on would test another model than the one that was named.
        raise InputError(
            f"module {name!r} has been imported from {file} before; name the factory by its path"
        )
    return module


@contextlib.contextmanager
def _on_path(source: str, base: Path) -> Iterator[list[Path]]:
    """Let imports find the user's modules, and not those of the same name that another target brought in."""
    folders = [base]
    if source.endswith(".py") and (home := (base / source).resolve().parent) != base:
        folders.append(home)
    for name in [name for name, origin in _imported.items() if origin != base]:
        sys.modules.pop(name, None)
        del _imported[name]
    before = set(sys.modules)
    entries = [str(folder) for folder in folders]
    sys.path[:0] = entries
    try:
        yield folders
    finally:
        for entry in entries:
            with contextlib.suppress(ValueError):
                sys.path.remove(entry)
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            if file and _within(Path(file), folders):
                _imported[name] = base


@contextlib.contextmanager
def _own_random_numbers() -> Iterator[None]:
    """Make a model that is built with random weights the same one each time, so that a run can be resumed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


def _attempt(reference: str, folders: list[Path], step: Callable[[], Any]) -> Any:
    try:
        return step()
    except InputError as error:
        raise InputError(f"factory {reference!r}: {error}") from None
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(f"factory {reference!r} raised {cause(error)}{_place(error, folders)}") from error


def cause(error: BaseException) -> str:
    """Say in one short line what went wrong: the type of an exception and its message."""
    try:
        message = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    except Exception:  # an exception of the user's that cannot describe itself
        message = ""
    message = message if len(message) <= 200 else f"{message[:197]}..."
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _place(error: BaseException, folders: list[Path]) -> str:
    """The innermost line of the user's own files, ready to be appended to an error message."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if (folder := _within(file, folders)) is not None:
            return f" ({file.relative_to(folder)}, line {frame.lineno})"
    return ""


def _within(file: Path, folders: list[Path]) -> Path | None:
    """The folder that a user's own file lies in; libraries installed below it are not the user's."""
    libraries = (Path(__file__).parent, Path(sysconfig.get_path("stdlib")))
    if {"site-packages", "dist-packages"} & set(file.parts) or any(map(file.is_relative_to, libraries)):
        return None
    return next((folder for folder in folders if file.is_relative_to(folder)), None)
