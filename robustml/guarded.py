"""A classifier behind its guards: the one model that is deployed, attacked, saved and loaded."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from .classifier import Classifier, Model, enter
from .errors import InputError, brief
from .files import write_atomic
from .guards import Answers, Guard, find_guard, through
from .inputs import InputSpec
from .registry import Access

__all__ = ["Guarded"]

_SCHEMA = "robustml.guarded/1"
_FAR = 1e4


class Guarded(Classifier):
    """A classifier behind guards, as it is deployed; attacks, reports and files take it as one model.

    Args:
        model: What is guarded: a `Classifier`, or a `BlackBox` of scores or labels.
        guards: In the order in which an input meets them.

    Attributes:
        model: What is guarded.
        guards: The guards.
        classes: The number of classes, without the one that stands for a rejection.
        rejects: Whether any guard rejects: then logits are (n, classes + 1), and an input is rejected where
            the last of them is the largest.

    Raises:
        InputError: for unacceptable arguments, or a guard that does not suit the inputs.
    """

    def __init__(self, model: Model, guards: Sequence[Guard]) -> None:
        nn.Module.__init__(self)
        if not isinstance(model, Model) or isinstance(model, Guarded):
            raise InputError(f"model is {type(model).__name__}; give a Classifier or a BlackBox")
        if isinstance(guards, Guard) or not isinstance(guards, Sequence):
            raise InputError(f"guards={brief(guards)} is not a list of guards")
        for given in guards:
            if not isinstance(given, Guard):
                raise InputError(f"guards holds {brief(given)}, which is not a Guard")
            given.attach(model.inputs)
        Answers(model, [name for given in guards for name in given.layers])  # refuses unknown ones at once
        self.model = model
        self.guards = nn.ModuleList(guards)
        self.inputs, self.classes, self.outputs = model.inputs, model.classes, model.outputs
        self.rejects = any(given.rejects for given in guards)

    @property
    def module(self) -> nn.Module:  # type: ignore[override]
        """Everything with a state: the guarded module and the guards."""
        return self

    @property
    def bare(self) -> Model:
        """The model without its guards, as an attacker who does not know of them has it."""
        return self.model

    @property
    def changing(self) -> list[Guard]:
        """The guards that change inputs."""
        return [each for each in self._guards() if type(each).forward is not Guard.forward]

    @property
    def passing(self) -> Guarded:
        """The same model without the guards that reject."""
        return Guarded(self.model, [each for each in self._guards() if not each.rejects])

    @property
    def access(self) -> Access:
        return self.model.access

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes), or (n, classes + 1) if it `rejects`, for a batch (n, *shape)."""
        ask = self._ask()
        x, scores = self._passed(x, ask)
        logits = ask(x)
        if not self.rejects:
            return logits
        # A score that is no number says that something is wrong with the input: it does not pass.
        found = torch.stack(list(scores.values()))
        worst = found.nan_to_num(nan=1.0, posinf=torch.inf, neginf=-torch.inf).amax(0)
        best = logits.amax(1)
        # Far from its threshold a score says no more; an infinite logit would be no number for a loss.
        return torch.cat([logits, (best + worst.clamp(-_FAR, _FAR).to(best.dtype))[:, None]], dim=1)

    def _passed(self, x: Tensor, ask: Answers) -> tuple[Tensor, dict[str, Tensor]]:
        """What comes to the model, and the score (n,) of each guard that rejects, by its place and name."""
        scores = {}
        for place, each in enumerate(self._guards()):
            if each.rejects:
                scores[f"{place}:{each.name}"] = each.score(x, ask)
            x = through(each, x)
        return x, scores

    def _guards(self) -> Iterator[Guard]:
        for each in self.guards:
            assert isinstance(each, Guard)
            yield each

    def _ask(self) -> Answers:
        return Answers(self.model, [name for each in self._guards() for name in each.layers])

    def rejections(self, x: Tensor) -> dict[str, Tensor]:
        """The score of each guard that rejects, above 0 where it does: (n,) by the place and name of it."""
        with torch.no_grad():
            return self._passed(x, self._ask())[1]

    @contextlib.contextmanager
    def ready(self, device: torch.device) -> Iterator[None]:
        with super().ready(device), self.model.ready(device):
            yield

    def fingerprint(self) -> str | None:
        """SHA-256 over the guarded model, the guards, their options and what they have learned."""
        inner = self.model.fingerprint()
        if inner is None:
            return None
        digest = hashlib.sha256(inner.encode())
        for each in self._guards():
            digest.update(f"{each.name} {json.dumps(each.options, sort_keys=True)}".encode())
            for name, value in sorted(each.learned.items()):
                enter(digest, name, value)
        return digest.hexdigest()

    @property
    def size(self) -> int | None:
        return self.model.size

    def describe(self) -> list[dict[str, Any]]:
        """The guards in order: name and options, as a target file would have them."""
        return [{"guard": each.name, **each.options} for each in self._guards()]

    def save(self, path: str | Path) -> None:
        """Write weights, guards and what they have learned to one safetensors file.

        Raises:
            InputError: for a black box, which has no weights to write.
            RunError: if the file cannot be written.
        """
        import safetensors.torch

        if not isinstance(self.model, Classifier):
            raise InputError("a guarded black box cannot be saved: its model is a function")
        tensors = {f"model.{key}": value for key, value in self.model.module.state_dict().items()}
        for place, each in enumerate(self._guards()):
            tensors |= {f"guards.{place}.{key}": value for key, value in each.learned.items()}
        about = {
            "schema": _SCHEMA,
            "inputs": self.inputs.to_dict(),
            "classes": self.classes,
            "outputs": self.outputs,
            "guards": [{"guard": each.name, "options": each.options} for each in self._guards()],
        }
        tidy = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        write_atomic(path, safetensors.torch.save(tidy, {"robustml": json.dumps(about)}))

    @classmethod
    def load(cls, path: str | Path, module: nn.Module) -> Self:
        """Read what `save` wrote; nothing in the file is executed.

        Args:
            path: The file.
            module: The network, built anew: the file holds its weights and not its code. It receives them.

        Raises:
            InputError: if the file is something else, damaged, or does not fit the module.
        """
        from .targets.loading import check_fit, read_safetensors

        source = Path(path)
        if not source.is_file():
            raise InputError(f"path={str(path)!r} is not a file")
        about = _about(source)
        state = read_safetensors(source)
        weights, learned = _split(state)
        check_fit(module, weights, source)
        module.load_state_dict(weights, strict=False)
        try:
            inputs = InputSpec.from_dict(about["inputs"])
            model = Classifier(module, inputs=inputs, classes=about["classes"], outputs=about["outputs"])
            guards = [
                find_guard(entry["guard"]).restored(entry["options"], learned.get(str(place), {}))
                for place, entry in enumerate(about["guards"])
            ]
            if strays := set(learned) - {str(place) for place in range(len(guards))}:
                raise InputError(f"{source} is damaged: nothing is said of guards.{min(strays)}")
        except (KeyError, TypeError, AttributeError):
            raise InputError(f"{source} is damaged: its description of the guards is incomplete") from None
        return cls(model, guards)


def _about(path: Path) -> dict[str, Any]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("robustml", "null"))
    except (OSError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} is not a safetensors file: {brief(str(error))}") from None
    if not isinstance(about, dict) or about.get("schema") != _SCHEMA:
        raise InputError(f"{path} is no guarded model; Guarded.save writes one")
    return about


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """The weights of the model, and what each guard has learned by its place."""
    weights: dict[str, Tensor] = {}
    learned: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        head, _, rest = key.partition(".")
        if head == "model":
            weights[rest] = value
        else:
            place, _, name = rest.partition(".")
            learned.setdefault(place, {})[name] = value
    return weights, learned
