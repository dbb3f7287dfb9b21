"""What differential privacy costs, and what it leaves: `python benchmarks/privacy.py`.

By default the small CNN of Papernot et al. (2021) learns MNIST at epsilon 1, 3 and 8 (delta 1e-5), from
random weights and without any other data. With `--cost`, one private epoch is timed against plain training
and against every mode of Opacus, in turn, several times, for that CNN and for a network of linear layers.
With `--memory`, the peak memory of private training is taken in processes of their own for several limits.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from command import Parser, line, positive, present
from models import data_option, mnist
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import robustml as rml
from robustml.defenses.privacy import DifferentialPrivacy
from robustml.defenses.training import harden
from robustml.estimates import proportion

SPEC = rml.InputSpec(shape=(1, 28, 28))
BATCH = 256
OPACUS = ("hooks", "functorch", "ew", "ghost")
OURS = ("auto", "hooks", "ghost", "functional")


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2),
        nn.Tanh(),
        nn.MaxPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(512, 32),
        nn.Tanh(),
        nn.Linear(32, 10),
    )


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"CNN": convolutional, "linear": linear}


def fresh(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build()


def accuracy(given: Any) -> None:
    x, y = mnist(given.data, "train", given.train)
    test_x, test_y = mnist(given.data, "test", 10_000)
    line(["epsilon", "noise multiplier", "steps", "mode", "accuracy", "seconds"])
    line(["--:", "--:", "--:", "---", "--:", "--:"])
    for epsilon in given.epsilon:
        begun = time.perf_counter()
        hardened = harden(
            rml.Classifier(fresh(convolutional), inputs=SPEC, classes=10),
            (x, y),
            privacy=DifferentialPrivacy(epsilon, clipping_norm=0.1, seed=given.seed),
            epochs=given.epochs,
            batch_size=given.batch,
            optimizer="sgd",
            learning_rate=given.rate,
            schedule="one-cycle",
            averaging="ema",
            progress=given.progress,
        )
        seconds = time.perf_counter() - begun
        with torch.no_grad():
            answers = torch.cat([hardened.model(part) for part in test_x.split(1000)]).argmax(1)
        right = proportion(int((answers == test_y).sum()), len(test_y))
        found = hardened.privacy
        assert found is not None
        assert found.epsilon is not None
        line(
            [
                f"{found.epsilon:.3f}",
                f"{found.noise_multiplier:.3f}",
                found.steps,
                found.mode,
                right,
                f"{seconds:.0f}",
            ]
        )


def plain(net: nn.Module, x: Tensor, y: Tensor) -> float:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    begun = time.process_time()
    for rows in torch.randperm(len(x)).split(BATCH):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    return time.process_time() - begun


def opacus(mode: str, net: nn.Module, x: Tensor, y: Tensor) -> float:
    """One epoch as the documentation of Opacus has it; what comes before is not counted."""
    from opacus import PrivacyEngine

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss: Any = nn.CrossEntropyLoss()
    made = PrivacyEngine(accountant="prv").make_private(
        module=net,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        grad_sample_mode=mode,
        criterion=loss,
    )
    if mode == "ghost":
        net, optimizer, loss, loader = made
    else:
        net, optimizer, loader = made
    begun = time.process_time()
    for images, labels in loader:
        optimizer.zero_grad()
        loss(net(images), labels).backward()
        optimizer.step()
    return time.process_time() - begun


def ours(mode: str, net: nn.Module, x: Tensor, y: Tensor) -> float:
    """One epoch of `harden`: from the first step, since a probe is made once in a run, to the last."""
    times: list[float] = []
    privacy = DifferentialPrivacy(
        noise_multiplier=1.0,
        mode=mode,  # type: ignore[arg-type]
        observer=lambda _: times.append(time.process_time()),
    )
    harden(
        rml.Classifier(net, inputs=SPEC, classes=10),
        (x, y),
        privacy=privacy,
        epochs=2,
        batch_size=BATCH,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        schedule="constant",
    )
    steps = len(times) // 2
    return times[-1] - times[steps - 1]


def cost(given: Any) -> None:
    x, y = mnist(given.data, "train", 4000)
    line(
        [
            "network",
            "what",
            "best CPU seconds",
            "times plain",
            "times the cheapest of Opacus",
            "median of that",
        ]
    )
    line(["---", "---", "--:", "--:", "--:", "--:"])
    for name, build in NETWORKS.items():
        jobs: dict[str, Callable[[], float]] = {"plain": lambda b=build: plain(fresh(b), x, y)}
        jobs |= {f"Opacus {m}": lambda m=m, b=build: opacus(m, fresh(b), x, y) for m in OPACUS}
        jobs |= {f"robustml {m}": lambda m=m, b=build: ours(m, fresh(b), x, y) for m in OURS}
        times: dict[str, list[float]] = {job: [] for job in jobs}
        for _ in range(given.repeats):
            for job, work in jobs.items():
                times[job].append(work())
        cheapest = min(
            (job for job in jobs if job.startswith("Opacus")), key=lambda job, t=times: min(t[job])
        )
        for job, found in times.items():
            ratios = [a / b for a, b in zip(found, times[cheapest], strict=True)]
            against = min(found) / min(times[cheapest])
            line(
                [
                    name,
                    job,
                    f"{min(found):.2f}",
                    f"{min(found) / min(times['plain']):.2f}",
                    f"{against:.2f}",
                    f"{statistics.median(ratios):.2f}",
                ]
            )


def peak(limit: int, mode: str, data: Path) -> float:
    """The peak resident memory of two private steps on 4,000 images at once, in MiB."""
    torch.set_num_threads(1)
    x, y = mnist(data, "train", 4000)
    privacy = DifferentialPrivacy(noise_multiplier=1.0, memory=limit, mode=mode)  # type: ignore[arg-type]
    harden(
        rml.Classifier(fresh(linear), inputs=SPEC, classes=10),
        (x, y),
        privacy=privacy,
        epochs=2,
        batch_size=len(x),
    )
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage / (1024 if sys.platform != "darwin" else 1024**2)


def memory(given: Any) -> None:
    line(["mode", "limit in MiB", "peak in MiB", "more than with 1 MiB"])
    line(["---", "--:", "--:", "--:"])
    for mode in ("functional", "hooks"):
        least = None
        for limit in (1, 64, 256, 1024):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                found = pool.apply(peak, (limit, mode, given.data))
            least = found if least is None else least
            line([mode, limit, f"{found:.0f}", f"{found - least:.0f}"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = Parser(__doc__)
    data_option(parser)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--cost", action="store_true", help="time epochs instead")
    what.add_argument("--memory", action="store_true", help="measure peak memory instead")
    parser.add_argument("--epsilon", nargs="+", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--train", type=positive, default=60_000)
    parser.add_argument("--epochs", type=positive, default=25)
    parser.add_argument("--batch", type=positive, default=1024)
    parser.add_argument("--rate", type=float, default=3.0)
    parser.add_argument(
        "--seed", type=int, default=0, help="of noise and sampling, so that it can be repeated"
    )
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--progress", action="store_true")
    given = parser.parse_args(arguments)
    present(parser, given.data, ["mnist.npz"])
    torch.set_num_threads(1)
    # Opacus warns at every start of what it does not do without its secure mode.
    warnings.filterwarnings("ignore", module="opacus")
    warnings.filterwarnings("ignore", message="Full backward hook is firing")
    (cost if given.cost else memory if given.memory else accuracy)(given)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
