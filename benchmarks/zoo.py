"""The five models of the verdicts, beside mnist_pgd: `python benchmarks/zoo.py --out DIR`.

Small networks after a few minutes of plain adversarial training on one core: they are there to be attacked,
not to be good. The same seeds give the same weights on the same kind of machine; every random number comes
from generators of its own.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from models import data_option, mnist, network, robust
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import robustml as rml
from robustml.targets.builtin.training import held_out
from robustml.threats import parse_threat

Split = Callable[[Path], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Entry:
    """One model: what it is made of, how it was trained, and the threat model that it is judged under.

    Attributes:
        build: Makes the untrained network.
        split: Loads x_train, y_train, x_test, y_test from the folder of data.
        threat: The threat model of the verdict; also the one of training, unless `steps` is 0.
        steps: Steps of PGD for each batch of training; 0 trains without an attacker.
        epochs, batch, rate: Of training: passes over the data, samples a step, the highest learning rate.
        augment: Pads, crops and mirrors the images.
        samples: How many test images the anchor figures were taken on.
    """

    build: Callable[[], nn.Module]
    split: Split
    threat: str
    steps: int
    epochs: int
    batch: int = 128
    rate: float = 4e-3
    augment: bool = False
    samples: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Case:
    """A trained model in evaluation mode with the data and the threat model of its verdict."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    threat: str
    classes: int = 10


def _mnist(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return *mnist(folder, "train", 60_000), *mnist(folder, "test", 10_000)


def _digits(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scikit-learn's handwritten digits; the last 500 rows of a fixed shuffle are held out."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy((pixels / 16).astype(np.float32).reshape(-1, 1, 8, 8))
    y = torch.from_numpy(labels.astype(np.int64))
    train, test = held_out(len(x), 500)
    return x[train], y[train], x[test], y[test]


def _cifar(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with np.load(folder / "cifar10_small.npz", allow_pickle=False) as arrays:
        parts = [arrays[name] for name in ("x_train", "y_train", "x_test", "y_test")]
    x_train, y_train, x_test, y_test = (torch.from_numpy(part) for part in parts)
    return _images(x_train), y_train.long(), _images(x_test), y_test.long()


def _images(pixels: Tensor) -> Tensor:
    return pixels.permute(0, 3, 1, 2).float().div(255).contiguous()


def _digits_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def _cifar_net() -> nn.Module:
    layers: list[nn.Module] = []
    for channels, wider in ((3, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(channels, wider, 3, padding=1),
            nn.BatchNorm2d(wider),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


ZOO: dict[str, Entry] = {
    "mnist_linf": Entry(network, _mnist, "linf:0.1", steps=5, epochs=4),
    "digits_linf": Entry(_digits_net, _digits, "linf:0.15", steps=3, epochs=12, batch=64),
    "cifar_bn": Entry(_cifar_net, _cifar, "linf:2/255", steps=2, epochs=24, rate=8e-3, augment=True),
    "mnist_plain": Entry(network, _mnist, "linf:0.1", steps=0, epochs=3),
    "mnist_l2": Entry(network, _mnist, "l2:1.5", steps=7, epochs=4),
}


def load(name: str, zoo: Path | None, data: Path, samples: int | None = None) -> Case:
    """A model of the zoo (or mnist_pgd, which needs none) and the first so many of its test images."""
    if name == "mnist_pgd":
        return Case(name, robust(data), *mnist(data, "test", samples or 1000), "linf:0.3")
    if zoo is None:
        raise SystemExit(f"{name} is trained by benchmarks/zoo.py; say with --zoo where it lies")
    entry = ZOO[name]
    net = entry.build()
    net.load_state_dict(load_file(zoo / f"{name}.safetensors"))
    _, _, x, y = entry.split(data)
    count = samples or entry.samples
    return Case(name, net.eval(), x[:count].clone(), y[:count].clone(), entry.threat)


def train(entry: Entry, data: Path) -> nn.Module:
    """Adversarial training by PGD (Madry et al. 2018) with a budget that grows over the first third."""
    x, y, _, _ = entry.split(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(entry.seed)
        net = entry.build()
    generator = torch.Generator().manual_seed(entry.seed)
    threat = parse_threat(entry.threat).within(rml.InputSpec(shape=tuple(x.shape[1:])))
    optimizer = torch.optim.Adam(net.parameters(), lr=entry.rate)
    total = entry.epochs * -(-len(x) // entry.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, entry.rate, total_steps=total)
    done = 0
    for _ in range(entry.epochs):
        for rows in torch.randperm(len(x), generator=generator).split(entry.batch):
            images, labels = x[rows], y[rows]
            if entry.augment:
                images = augmented(images, generator)
            if entry.steps:
                eps = threat.eps * min(1.0, (done + 1) / (total / 3))
                images = attacked(net, images, labels, threat.norm, eps, entry.steps, generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()
            schedule.step()
            done += 1
    return net.eval()


def augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to three pixels (one shift per batch) and half of them mirrored."""
    down, right = torch.randint(7, (2,), generator=generator).tolist()
    height, width = images.shape[2:]
    padded = nn.functional.pad(images, (3, 3, 3, 3), mode="reflect")
    shifted = padded[:, :, down : down + height, right : right + width]
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    return torch.where(mirrored, shifted.flip(3), shifted)


def attacked(
    net: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float, steps: int, generator: torch.Generator
) -> Tensor:
    """A few steps of PGD from a random point; it shares no code, and no fault, with the attacks measured."""
    noise = torch.rand(x.shape, generator=generator) * 2 - 1
    delta = noise * eps if norm == "linf" else noise / length(noise) * eps / 2
    for _ in range(steps):
        point = (x + delta).clamp(0, 1).requires_grad_()
        loss = nn.functional.cross_entropy(net(point), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, point)
        step = 2.5 * eps / steps if steps > 1 else 1.25 * eps
        if norm == "linf":
            delta = (point.detach() - x + step * gradient.sign()).clamp(-eps, eps)
        else:
            delta = point.detach() - x + step * gradient / length(gradient).clamp_min(1e-12)
            delta = delta * (eps / length(delta).clamp_min(1e-12)).clamp_max(1)
    return (x + delta).clamp(0, 1)


def length(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, (n, 1, 1, 1)."""
    return torch.linalg.vector_norm(x, dim=(1, 2, 3), keepdim=True)


def first_look(case: Case) -> tuple[float, float]:
    """Accuracy in percent, and what 20 steps of PGD leave of it."""
    threat = parse_threat(case.threat).within(rml.InputSpec(shape=tuple(case.x.shape[1:])))
    generator = torch.Generator().manual_seed(1)
    point = attacked(case.net, case.x, case.y, threat.norm, threat.eps, 20, generator)
    with torch.no_grad():
        clean, robust = (case.net(x).argmax(1) == case.y for x in (case.x, point))
    return 100 * clean.float().mean().item(), 100 * (clean & robust).float().mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    data_option(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of the models, made where missing")
    parser.add_argument("--model", choices=[*ZOO, "all"], default="all")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in ZOO if arguments.model == "all" else [arguments.model]:
        begun = time.perf_counter()
        net = train(ZOO[name], arguments.data)
        save_file(net.state_dict(), arguments.out / f"{name}.safetensors")
        seconds = time.perf_counter() - begun
        clean, standing = first_look(load(name, arguments.out, arguments.data))
        print(
            f"{name}: {seconds:.0f} s, accuracy {clean:.1f} %, after PGD-20 under {ZOO[name].threat} "
            f"{standing:.1f} %",
            flush=True,
        )


if __name__ == "__main__":
    main()
