"""The target file: TOML that names a model, data and what to test, checked down to the last key."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pydantic
from pydantic import Field

from ..errors import InputError, brief, suggest
from ..schema import Frozen, validated
from .privacy import PrivacyTable

if TYPE_CHECKING:
    from ..inputs import InputSpec

__all__ = ["TargetFile", "read_target_file"]

_CONDITION = re.compile(r"\s*(>=|<=|>|<)\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")
_MOST_BYTES = 10 * 2**20

Text = Annotated[str, Field(min_length=1)]


class ModelTable(Frozen):
    """The [model] table: a factory, with or without weights, or an ONNX file."""

    factory: Text | None = None
    onnx: Text | None = None
    weights: Text | None = None
    classes: int = Field(ge=2, le=10**6)
    outputs: Literal["logits", "probabilities", "binary-logit", "labels"] = "logits"
    name: Text | None = None
    twin: Text | None = None
    """A factory as well: an undefended or earlier model that returns logits."""
    twin_weights: Text | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> ModelTable:
        if (self.factory is None) == (self.onnx is None):
            raise ValueError("it takes exactly one of factory and onnx")
        if self.onnx is not None and self.weights is not None:
            raise ValueError("weights go with factory; an ONNX file holds its own")
        if self.twin_weights is not None and self.twin is None:
            raise ValueError("twin_weights go with twin")
        return self

    @property
    def display_name(self) -> str:
        """What reports call the model."""
        return self.name or self.factory or Path(self.onnx or "").name


class DataTable(Frozen):
    """The [data] table: an .npz file or a folder of images."""

    test: Text | None = None
    folder: Text | None = None
    train: Text | None = None
    """An .npz file as well, for `robustml harden` and `audit`; its arrays have the same names and layout."""
    x: Text = "x"
    y: Text = "y"
    layout: Literal["chw", "hwc"] = "chw"
    samples: int | None = Field(default=None, ge=1)
    select: Literal["first", "stratified"] = "stratified"
    class_names: list[str] = Field(default_factory=list)

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> DataTable:
        if (self.test is None) == (self.folder is None):
            raise ValueError("it takes exactly one of test and folder")
        if self.folder is not None and not self.train and self.model_fields_set & {"x", "y", "layout"}:
            raise ValueError("x, y and layout go with test or train")
        return self


class StressTable(Frozen):
    """The [stress] table: what to test against."""

    suite: Text = "standard"
    threats: list[Text] = Field(default_factory=list)
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch_size: int | None = Field(default=None, ge=1, le=10**9)
    goals: list[Text] = Field(default_factory=list)
    draws: int | None = Field(default=None, ge=2, le=10**4)
    eot: int | None = Field(default=None, ge=1, le=10**4)


class GuardsTable(Frozen):
    """The [guards] table: what stands before the model, in order, or a file that holds it."""

    use: list[dict[str, Any]] = Field(default_factory=list)
    """Each with the name of a guard under "guard", and its options."""
    fit: Text | None = None
    """An .npz file of clean inputs, for guards that learn from them: none of the test data."""
    x: Text = "x"
    y: Text = "y"
    saved: Text | None = None
    """What `Guarded.save` wrote: the guards, what they have learned, and the weights of the model."""

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> GuardsTable:
        if bool(self.use) == (self.saved is not None):
            raise ValueError("it takes exactly one of use and saved")
        if self.saved is not None and self.fit is not None:
            raise ValueError("fit goes with use; a saved file holds what was learned")
        return self


class TargetFile(Frozen):
    """A target file, schema version 1; paths in it are relative to its own folder."""

    schema_: Literal[1] = Field(alias="schema")
    model: ModelTable
    inputs: dict[str, Any]
    """The attributes of `InputSpec`; features may be given by name where indices are wanted."""
    data: DataTable
    guards: GuardsTable | None = None
    stress: StressTable = StressTable()
    privacy: PrivacyTable | None = None
    gate: dict[str, str] = Field(default_factory=dict)
    """Figure to condition, as in {"evasion": ">= 40"}."""

    @pydantic.field_validator("gate")
    @classmethod
    def _conditions(cls, gate: dict[str, str]) -> dict[str, str]:
        for figure, condition in gate.items():
            if not _CONDITION.fullmatch(condition):
                raise ValueError(
                    f"{figure} takes a comparison and a number, as in '>= 40', not {condition[:40]!r}"
                )
        return gate

    @pydantic.model_validator(mode="after")
    def _weights_once(self) -> TargetFile:
        if self.guards is not None and self.guards.saved is not None and self.model.weights is not None:
            raise ValueError("guards.saved holds the weights; drop model.weights")
        return self

    @pydantic.model_validator(mode="after")
    def _members_known(self) -> TargetFile:
        if self.privacy is not None and self.data.train is None:
            raise ValueError("privacy needs data.train, what the model was trained on: its members")
        return self

    @pydantic.model_validator(mode="after")
    def _names_match(self) -> TargetFile:
        names, classes = self.data.class_names, self.model.classes
        if names and len(names) != classes:
            raise ValueError(f"data.class_names has {len(names)} names for {classes} classes")
        return self

    def input_spec(self) -> InputSpec:
        """Build the input specification.

        Raises:
            InputError: for an unknown key (with the nearest known one) or an unacceptable value.
        """
        # Here and not above: it needs torch, which takes a second to import.
        from ..inputs import InputSpec

        table = dict(self.inputs)
        names = table.get("features", [])
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise InputError(f"inputs.features={brief(names)} is not a list of names")
        if len(set(names)) < len(names):
            raise InputError("inputs.features names a feature twice")
        positions = {name: index for index, name in enumerate(names)}
        for key in ("immutable", "integer", "one_hot"):
            if key in table:
                table[key] = _indices(key, table[key], positions)
        try:
            return InputSpec.from_dict(table)
        except InputError as error:
            message = str(error)
            raise InputError(message if message.startswith("inputs.") else f"inputs.{message}") from None


def read_target_file(path: str | Path) -> TargetFile:
    """Read and check a target file; no file that it names is opened.

    Raises:
        InputError: one line with the path and everything that is wrong.
    """
    data = _read_toml(Path(path))
    try:
        file = validated(TargetFile, data, where=str(path))
    except InputError as error:
        # Quoted keys of TOML may hold line breaks, which would break the one line of the message.
        raise InputError(" ".join(str(error).split())) from None
    try:
        file.input_spec()
    except InputError as error:
        raise InputError(" ".join(f"{path}: {error}".split())) from None
    return file


def _read_toml(path: Path) -> Mapping[str, Any]:
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder, not a target file")
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except FileNotFoundError:
        raise InputError(f"target file {str(path)!r} does not exist") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"target file {str(path)!r} cannot be read: {reason}") from None
    if len(raw) > _MOST_BYTES:
        raise InputError(f"{path} is larger than {_MOST_BYTES // 2**20} MiB; is it a target file?")
    try:
        return tomllib.loads(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is not UTF-8 text: line {line} holds the byte 0x{raw[error.start]:02x}"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: nested too deeply") from None
    except ValueError as error:  # TOMLDecodeError, and numbers that Python will not convert
        raise InputError(f"{path} is not TOML: {' '.join(str(error).split())[:200]}") from None


def _indices(key: str, values: Any, positions: Mapping[str, int]) -> Any:
    """Replace names of features by their indices; what is neither is left for the specification to refuse."""
    if isinstance(values, list):
        return [_indices(key, value, positions) for value in values]
    if not isinstance(values, str):
        return values
    if not positions:
        raise InputError(f"inputs.{key} holds the name {brief(values)}; names need inputs.features")
    if values not in positions:
        raise InputError(
            f"inputs.{key} holds {brief(values)}, which is no feature{suggest(values, positions)}"
        )
    return positions[values]
