"""What AutoAttack finds and costs: `python benchmarks/reference.py --autoattack CHECKOUT --cache DIR`.

AutoAttack (Croce and Hein 2020) is not on the package index; a checkout of its repository is given by path.
Its `standard` version is run as it comes. The verdict keeps which samples are left standing, so that two
evaluations can be compared sample by sample.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from models import data_option
from torch import Tensor, nn
from zoo import ZOO, Case, load

import robustml as rml
from robustml.threats import parse_threat

NORMS = {"linf": "Linf", "l2": "L2", "l1": "L1"}
ORDERS = {"linf": float("inf"), "l2": 2.0, "l1": 1.0}
NAMES = ["mnist_pgd", *ZOO]


@dataclass
class Passes:
    """Samples that went through a network, and gradients of its outputs that went back."""

    forward: int = 0
    backward: int = 0

    @property
    def cost(self) -> int:
        return self.forward + 2 * self.backward

    def per(self, samples: int) -> str:
        return f"{self.forward / samples:.1f} / {self.backward / samples:.1f} / {self.cost / samples:.1f}"


@dataclass
class Reference:
    """One evaluation by AutoAttack.

    Attributes:
        fingerprint: Names the network, the data and the threat model.
        standing: Rows that it did not break, of those that were classified correctly.
        excess: How far its farthest point lies beyond eps, in float64; rounding leaves some 1e-8.
    """

    model: str
    threat: str
    samples: int
    seed: int
    batch: int
    fingerprint: str
    clean: int
    standing: list[int]
    passes: Passes
    seconds: float
    stages: list[dict[str, Any]] = field(default_factory=list)
    excess: float | None = None

    @classmethod
    def read(cls, file: Path) -> Reference:
        found = json.loads(file.read_text(encoding="utf-8"))
        return cls(**{**found, "passes": Passes(**found["passes"])})


@contextlib.contextmanager
def counted(net: nn.Module) -> Iterator[Passes]:
    """Count every pass of a network, whoever asks for it; copies of the network count in the same place."""
    passes = Passes()

    # Plain functions, because copying a module copies the owner of a bound method.
    def back(gradient: Tensor) -> None:
        passes.backward += len(gradient) * vectorized(gradient)

    def after(_module: nn.Module, _inputs: Any, logits: Tensor) -> None:
        passes.forward += len(logits) * vectorized(logits)
        if logits.requires_grad:
            logits.register_hook(back)

    handle = net.register_forward_hook(after)
    try:
        yield passes
    finally:
        handle.remove()


def vectorized(tensor: Tensor) -> int:
    """How many gradients one call stands for where `is_grads_batched` asks for rows of a Jacobian at once."""
    functorch = torch._C._functorch
    if functorch.is_batchedtensor(tensor):
        raise RuntimeError("passes under torch.func.vmap cannot be counted")
    if not functorch.is_legacy_batchedtensor(tensor):
        return 1
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return len(torch._remove_batch_dim(tensor, level, 0, 0))


def fingerprint(case: Case) -> str:
    """SHA-256 over weights, data and threat model."""
    digest = hashlib.sha256(case.threat.encode())
    for name, tensor in sorted(case.net.state_dict().items()):
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    digest.update(case.x.numpy().tobytes() + case.y.numpy().tobytes())
    return digest.hexdigest()


def reference(case: Case, checkout: Path | None, cache: Path | None, *, seed: int, batch: int) -> Reference:
    """AutoAttack's verdict: from the cache where it has one on these weights, data and settings.

    A result takes minutes, so one on other settings is never overwritten; the new one gets a longer name.
    """
    digest = fingerprint(case)
    files = (
        [cache / f"{case.name}{end}.json" for end in ("", f"-{digest[:8]}-{seed}-{batch}")] if cache else []
    )
    for file in files:
        if file.is_file():
            found = Reference.read(file)
            if (found.fingerprint, found.seed, found.batch) == (digest, seed, batch):
                return found
    if checkout is None:
        raise SystemExit(f"AutoAttack's result on {case.name} is not in the cache; give its checkout")
    fresh = attack(case, checkout, digest, seed=seed, batch=batch)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        file = next(file for file in files if not file.is_file() or file is files[-1])
        file.write_text(json.dumps(asdict(fresh), indent=1) + "\n", encoding="utf-8")
    return fresh


def attack(case: Case, checkout: Path, digest: str, *, seed: int, batch: int) -> Reference:
    """Run AutoAttack `standard`; what it prints goes to stderr."""
    threat = parse_threat(case.threat).within(rml.InputSpec(shape=tuple(case.x.shape[1:])))
    if str(checkout) not in sys.path:
        sys.path.insert(0, str(checkout))
    from autoattack import AutoAttack

    with torch.no_grad():
        correct = case.net(case.x).argmax(1) == case.y
    stages: list[dict[str, Any]] = []
    # AutoAttack seeds the global generators.
    with (
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(sys.stderr),
        counted(case.net) as passes,
    ):
        judge = AutoAttack(
            case.net, norm=NORMS[threat.norm], eps=threat.eps, seed=seed, version="standard", device="cpu"
        )
        begun = time.perf_counter()
        judge.logger.log = note_stages(stages, passes, len(case.x), begun)
        points, labels = judge.run_standard_evaluation(case.x, case.y, bs=batch, return_labels=True)
        seconds = time.perf_counter() - begun
    moved = (points.double() - case.x.double()).flatten(1)
    return Reference(
        model=case.name,
        threat=case.threat,
        samples=len(case.x),
        seed=seed,
        batch=batch,
        fingerprint=digest,
        clean=int(correct.sum()),
        standing=(labels == case.y).nonzero()[:, 0].tolist(),
        passes=passes,
        seconds=round(seconds, 1),
        stages=stages,
        excess=float(torch.linalg.vector_norm(moved, ORDERS[threat.norm], dim=1).max()) - threat.eps,
    )


def note_stages(stages: list[dict[str, Any]], passes: Passes, samples: int, begun: float) -> Any:
    """A log function that also notes what stood, and what had been paid, after each attack."""

    def log(text: str) -> None:
        print(text)
        if text.startswith("robust accuracy after "):
            name, _, rest = text.removeprefix("robust accuracy after ").partition(":")
            share = float(rest.split("%")[0]) / 100
            spent = {"forward": passes.forward, "backward": passes.backward}
            seconds = round(time.perf_counter() - begun, 1)
            stages.append(
                {"attack": name.lower(), "standing": round(share * samples), **spent, "seconds": seconds}
            )

    return log


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--autoattack", type=Path, required=True, help="checkout of the repository")
    parser.add_argument("--model", choices=[*NAMES, "all"], default="all")
    parser.add_argument("--zoo", type=Path, help="folder that benchmarks/zoo.py wrote")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the results, one JSON a model")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in NAMES if arguments.model == "all" else [arguments.model]:
        case = load(name, arguments.zoo, arguments.data, arguments.samples)
        found = reference(
            case, arguments.autoattack, arguments.cache, seed=arguments.seed, batch=arguments.batch
        )
        print(
            f"{name}: {found.clean} correct, {len(found.standing)} of {found.samples} standing under "
            f"{found.threat}, {found.passes.per(found.samples)} passes per image, {found.seconds} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
