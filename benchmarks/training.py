"""What hardening costs and buys: `python benchmarks/training.py`.

With `--overhead`, one epoch of 6,000 MNIST images with batches of 128 is timed against a bare loop of the
same passes, in turn, several times: plain training, FGSM from a random start, PGD with seven steps; and
against the trainers of ART where they do the same work. Otherwise recipes are followed on MNIST (Linf 0.3) or
on the 8 by 8 digits (Linf 0.1), from the same random weights, and what comes out is stress-tested.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from command import Parser, line, positive, present
from models import data_option, mnist, network
from torch import Tensor, nn

import robustml as rml
from robustml.defenses.training import PGD, Objective, Standard, harden
from robustml.defenses.training.recipe import follow, load_recipe, recipe_names
from robustml.targets import load_target

EPS = 0.3
SPEC = rml.InputSpec(shape=(1, 28, 28))


def fresh(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def bare(net: nn.Module, x: Tensor, y: Tensor, steps: int, length: float) -> None:
    """One epoch as one would write it by hand."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for rows in torch.randperm(len(x)).split(128):
        part, labels = x[rows], y[rows]
        z = part
        if steps:
            z = (part + (2 * torch.rand_like(part) - 1) * EPS).clamp(0, 1)
        for _ in range(steps):
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(net(z), labels), z)
            z = (z.detach() + length * gradient.sign()).clamp(part - EPS, part + EPS).clamp(0, 1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(z.detach()), labels).backward()
        optimizer.step()


def ours(net: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> float:
    model = rml.Classifier(net, inputs=SPEC, classes=10)
    settings: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.01, "schedule": "constant"}
    done = harden(model, (x, y), objective=objective, epochs=1, batch_size=128, validation=None, **settings)
    return done.history[0].seconds


def timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def art_trainer(kind: str, net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], object]:
    """One epoch of ART's trainer of that kind."""
    from art.defences.trainer import AdversarialTrainerFBFPyTorch, AdversarialTrainerMadryPGD
    from art.estimators.classification import PyTorchClassifier

    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: Tensor) -> Tensor:
            logits: Tensor = self.net(z)
            return logits

    estimator = PyTorchClassifier(
        Wrapped(),
        nn.CrossEntropyLoss(),
        (1, 28, 28),
        10,
        optimizer=optimizer,
        clip_values=(0, 1),
        device_type="cpu",
    )
    images, labels = x.numpy(), nn.functional.one_hot(y, 10).numpy()
    if kind == "plain":
        return lambda: estimator.fit(images, labels, batch_size=128, nb_epochs=1)
    if kind == "FGSM":
        trainer = AdversarialTrainerFBFPyTorch(estimator, eps=EPS)
        return lambda: trainer.fit(images, labels, batch_size=128, nb_epochs=1)
    madry = AdversarialTrainerMadryPGD(
        estimator, nb_epochs=1, batch_size=128, eps=EPS, eps_step=2.5 * EPS / 7, max_iter=7, num_random_init=1
    )
    return lambda: madry.fit(images, labels, batch_size=128, nb_epochs=1)


def overhead(given: Any) -> None:
    x, y = mnist(given.data, "train", 6000)
    threat = rml.Linf(EPS)
    jobs: dict[str, tuple[Objective, int, float]] = {
        "plain": (Standard(), 0, 0.0),
        "FGSM": (PGD(threat, steps=1, step=1.25), 1, 1.25 * EPS),
        "PGD": (PGD(threat, steps=7), 7, 2.5 * EPS / 7),
    }
    line(["job", "s of the bare loop", "ours / bare: best", "median", "ART / bare", "ART / ours"])
    line(["---"] + ["--:"] * 5)
    for name, (objective, steps, length) in jobs.items():
        times: dict[str, list[float]] = {"bare": [], "ours": [], "art": []}
        for _ in range(given.repeats):
            net = fresh(network)
            times["bare"].append(timed(lambda net=net, s=steps, n=length: bare(net, x, y, s, n)))
            times["ours"].append(ours(fresh(network), x, y, objective))
            times["art"].append(timed(art_trainer(name, fresh(network), x, y)))
        least = {key: min(found) for key, found in times.items()}
        paired = [a / b for a, b in zip(times["ours"], times["bare"], strict=True)]
        ratios = [
            least["ours"] / least["bare"],
            statistics.median(paired),
            least["art"] / least["bare"],
            least["art"] / least["ours"],
        ]
        line([name, f"{statistics.median(times['bare']):.2f}", *(f"{ratio:.2f}" for ratio in ratios)])


def recipes(given: Any) -> None:
    line(["recipe", "epochs", "seconds", "clean accuracy", "robust accuracy", "within", "trusted"])
    line(["---", "--:", "--:", "--:", "--:", "---", "---"])
    if given.on == "mnist":
        x, y = mnist(given.data, "train", given.train)
        tested, threat = mnist(given.data, "test", given.samples), rml.Linf(EPS)
        start = rml.Classifier(fresh(network), inputs=SPEC, classes=10)
        data: Any = (x, y)
    else:
        from robustml.targets.builtin.digits import _network

        target = load_target("digits")
        assert target.train is not None
        data, threat = target.train, target.threats[0]
        tested = tuple(torch.from_numpy(part)[: given.samples] for part in (target.data.x, target.data.y))
        start = rml.Classifier(fresh(_network), inputs=target.model.inputs, classes=10)
    for name in given.recipe or recipe_names():
        model = rml.Classifier(copy.deepcopy(start.module), inputs=start.inputs, classes=10)
        recipe = load_recipe(name)
        more = {"epochs": given.epochs} if given.epochs else {}
        begun = time.perf_counter()
        hardened = follow(recipe, model, data, threat=threat, progress=given.progress, **more)
        seconds = time.perf_counter() - begun
        report = rml.stress_test(hardened.model, tested, threats=[threat], suite=given.suite, select="first")
        upper = report.threats[0].robust_accuracy.upper
        trusted = "yes" if report.trusted else "no"
        cells = [
            name,
            len(hardened.history),
            f"{seconds:.0f}",
            report.clean.accuracy,
            upper,
            threat.name,
            trusted,
        ]
        line(cells)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    data_option(parser)
    parser.add_argument("--overhead", action="store_true", help="time epochs instead")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--on", choices=("mnist", "digits"), default="digits")
    parser.add_argument("--recipe", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--epochs", type=positive, help="instead of what a recipe says")
    parser.add_argument("--train", type=positive, default=60_000, help="MNIST images to train on")
    parser.add_argument("--samples", type=positive, default=1000)
    parser.add_argument("--suite", default="standard")
    parser.add_argument("--threads", type=positive, default=1)
    parser.add_argument("--progress", action="store_true")
    given = parser.parse_args(arguments)
    if given.overhead or given.on == "mnist":
        present(parser, given.data, ["mnist.npz"])
    torch.set_num_threads(given.threads)
    overhead(given) if given.overhead else recipes(given)
    return 0


if __name__ == "__main__":
    sys.exit(main())
