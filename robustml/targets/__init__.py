"""A target: a model, the data to test it on, and how, from a TOML file or built in.

Names of built-in targets can be listed without importing anything heavy; the rest comes in when a target
is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, suggest
from .builtin import BUILTIN_TARGETS, build

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn

    from ..classifier import Classifier, Model
    from ..data import Dataset
    from ..inputs import InputSpec
    from ..threats import Threat
    from .file import TargetFile, read_target_file
    from .privacy import PrivacyTable

__all__ = ["BUILTIN_TARGETS", "Target", "TargetFile", "load_target", "read_target_file"]

FILE_NAME = "robustml.toml"


@dataclass(frozen=True)
class Target:
    """Everything that a stress test needs to know; override settings with `dataclasses.replace`.

    Attributes:
        name: What reports call it.
        model: The model under test.
        model_name: What reports call the model.
        data: All labelled inputs; `samples` and `select` say which of them are used.
        class_names: One name per class.
        suite: The name of a suite of attacks, or the path of one.
        threats: The threat models, bound to the inputs of the model.
        seed: Decides every random number of the run.
        batch_size: Samples per chunk of work; None lets the harness decide.
        samples: How many samples to test on; None for all.
        select: How they are chosen: "first" or "stratified" (see `robustml.data.choose`).
        goals: What the attacker wants, as in `3->8` or `*->0` (see `robustml.goals`); any mistake, if empty.
        draws: For a model that answers at random: draws per vote; None lets the harness decide.
        eot: For such a model: draws per answer and gradient in attacks; None lets the harness decide.
        gate: Conditions for release, as in {"evasion": ">= 40"}.
        twin: An undefended or an earlier model of the same inputs and classes; what fools it is tried on the
            model, too.
        train: What the model was trained on or is to be trained on, where that is known.
        privacy: How privacy is to be audited; None for not at all.
        claim: The privacy that the file of the weights claims, as plain data; None where it claims none.
        build: Makes the network of the model with the weights that it had before training, where that is
            known.
        builtin: Whether it came with the library.
    """

    name: str
    model: Model
    model_name: str
    data: Dataset
    class_names: tuple[str, ...]
    suite: str = "standard"
    threats: tuple[Threat, ...] = ()
    seed: int = 0
    batch_size: int | None = None
    samples: int | None = None
    select: str = "stratified"
    goals: tuple[str, ...] = ()
    draws: int | None = None
    eot: int | None = None
    gate: dict[str, str] = dataclasses.field(default_factory=dict)
    twin: Classifier | None = None
    train: Dataset | None = None
    privacy: PrivacyTable | None = None
    claim: dict[str, Any] | None = None
    build: Callable[[], nn.Module] | None = None
    builtin: bool = False

    @contextlib.contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        """Prepare the model and its twin for attack on a device, and put everything back afterwards."""
        with contextlib.ExitStack() as stack:
            for model in (self.model, self.twin):
                if model is not None:
                    stack.enter_context(model.ready(device))
            yield


def load_target(spec: str | Path) -> Target:
    """Load a target.

    Args:
        spec: The name of a built-in target, the path of a target file, or a folder that holds robustml.toml.
            A built-in name wins over a folder of that name; "./digits" is the folder.

    Raises:
        InputError: one line that says what cannot be used, and where.
    """
    if str(spec) in BUILTIN_TARGETS:
        return _built_in(str(spec))
    path = Path(spec)
    try:
        folder, exists = path.is_dir(), path.exists()
    except (OSError, ValueError):
        folder = exists = False
    if folder:
        path = path / FILE_NAME
        if not path.is_file():
            raise InputError(
                f"folder {str(spec)!r} holds no {FILE_NAME}; run robustml init, or name the target file"
            )
    elif not exists:
        if str(spec).endswith(".toml") or len(path.parts) > 1:
            raise InputError(f"target file {str(spec)!r} does not exist")
        raise InputError(
            f"target {str(spec)!r} is neither built in nor a file{suggest(str(spec), BUILTIN_TARGETS)}"
        )
    return _from_file(path)


def _built_in(name: str) -> Target:
    from ..threats import parse_threat

    parts = build(name)
    return Target(
        name=name,
        model=parts.model,
        model_name=name,
        data=parts.data,
        class_names=parts.class_names,
        threats=tuple(parse_threat(threat).within(parts.model.inputs) for threat in parts.threats),
        train=parts.train,
        builtin=True,
    )


def _from_file(path: Path) -> Target:
    from ..goals import parse_goals
    from ..threats import parse_threat
    from .file import read_target_file

    file = read_target_file(path)
    base = path.resolve().parent
    inputs = file.input_spec()
    try:
        threats = tuple(parse_threat(threat).within(inputs) for threat in file.stress.threats)
    except InputError as error:
        raise InputError(f"{path}: stress.threats: {error}") from None
    model = _guarded(file, _model(file, inputs, base), path, base)
    data, class_names = _data(file, inputs, base)
    try:
        parse_goals(file.stress.goals, class_names)
    except InputError as error:
        raise InputError(f"{path}: stress.goals: {error}") from None
    suite = file.stress.suite
    return Target(
        name=base.name if path.name == FILE_NAME else path.stem,
        model=model,
        model_name=file.model.display_name,
        data=data,
        class_names=class_names,
        suite=str(base / suite) if suite.endswith(".toml") else suite,
        threats=threats,
        seed=file.stress.seed,
        batch_size=file.stress.batch_size,
        samples=file.data.samples,
        select=file.data.select,
        goals=tuple(file.stress.goals),
        draws=file.stress.draws,
        eot=file.stress.eot,
        gate=dict(file.gate),
        twin=_twin(file, inputs, base),
        train=_train(file, inputs, base),
        privacy=_privacy(file, base),
        claim=_claim(file, base),
        build=_build(file, base),
    )


def _model(file: TargetFile, inputs: InputSpec, base: Path) -> Model:
    from ..classifier import BlackBox, Classifier
    from .loading import load_factory, load_onnx, load_weights

    settings = file.model
    if settings.onnx is not None:
        session, digest = load_onnx(base / settings.onnx, inputs)
        classes, outputs = settings.classes, settings.outputs
        model = BlackBox.from_onnx(session, inputs=inputs, classes=classes, outputs=outputs)
        return BlackBox(model.predict, inputs=inputs, classes=classes, outputs=outputs, digest=digest)
    assert settings.factory is not None
    module = load_factory(settings.factory, base)
    if settings.weights is not None:
        load_weights(module, base / settings.weights)
    return Classifier(module, inputs=inputs, classes=settings.classes, outputs=settings.outputs)


def _guarded(file: TargetFile, model: Model, path: Path, base: Path) -> Model:
    from .guarding import guarded, guarded_from

    table = file.guards
    if table is None:
        return model
    try:
        return guarded_from(base / table.saved, model) if table.saved else guarded(model, table, base)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _twin(file: TargetFile, inputs: InputSpec, base: Path) -> Classifier | None:
    from ..classifier import Classifier
    from .loading import load_factory, load_weights

    settings = file.model
    if settings.twin is None:
        return None
    module = load_factory(settings.twin, base)
    if settings.twin_weights is not None:
        load_weights(module, base / settings.twin_weights)
    return Classifier(module, inputs=inputs, classes=settings.classes)


def _train(file: TargetFile, inputs: InputSpec, base: Path) -> Dataset | None:
    from ..data import as_dataset, read_npz

    settings = file.data
    if settings.train is None:
        return None
    arrays = read_npz(base / settings.train, x=settings.x, y=settings.y, layout=settings.layout)
    return as_dataset(arrays, inputs, file.model.classes, name=Path(settings.train).name)


def _privacy(file: TargetFile, base: Path) -> PrivacyTable | None:
    table = file.privacy
    if table is None or table.recipe is None or not table.recipe.endswith(".toml"):
        return table
    return table.model_copy(update={"recipe": str(base / table.recipe)})


def _claim(file: TargetFile, base: Path) -> dict[str, Any] | None:
    from .loading import claimed_privacy, read_provenance

    weights = file.model.weights
    if weights is None or not weights.lower().endswith(".safetensors"):
        return None
    return claimed_privacy(read_provenance(base / weights))


def _build(file: TargetFile, base: Path) -> Callable[[], nn.Module] | None:
    from .loading import load_factory

    factory = file.model.factory
    return None if factory is None else lambda: load_factory(factory, base)


def _data(file: TargetFile, inputs: InputSpec, base: Path) -> tuple[Dataset, tuple[str, ...]]:
    from ..data import as_dataset, read_folder, read_npz

    settings, classes = file.data, file.model.classes
    names = tuple(settings.class_names)
    if settings.folder is not None:
        x, y, folders = read_folder(base / settings.folder, inputs.shape)
        if len(folders) != classes:
            raise InputError(
                f"{settings.folder} has {len(folders)} class folders; model.classes is {classes}"
            )
        names = names or folders
        source = settings.folder
    else:
        assert settings.test is not None
        x, y = read_npz(base / settings.test, x=settings.x, y=settings.y, layout=settings.layout)
        source = settings.test
    data = as_dataset((x, y), inputs, classes, name=Path(source).name)
    return data, names or tuple(str(label) for label in range(classes))


def __getattr__(name: str) -> Any:
    # Validation takes a quarter of a second to import, which listing names must not cost.
    if name in {"TargetFile", "read_target_file"}:
        from . import file as target_file

        return getattr(target_file, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
