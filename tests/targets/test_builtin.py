from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import robustml.targets.builtin.training as training
from robustml.attacks.evasion.pgd import pgd
from robustml.classifier import Classifier
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.losses import is_wrong
from robustml.sampling import Streams
from robustml.targets import Target, load_target
from robustml.targets.builtin import BUILTIN_TARGETS
from robustml.targets.builtin.training import Recipe, cache_folder, held_out, trained


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTML_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module", params=sorted(BUILTIN_TARGETS))
def target(request, cache: Path) -> Target:
    return load_target(request.param)


def right(model: Classifier, x: torch.Tensor, y: torch.Tensor) -> float:
    with torch.no_grad():
        return float((~is_wrong(model(x), y)).double().mean())


EXPECTED = {
    "digits": (500, (1, 8, 8), 10, 0.97, (0.4, 0.75), "linf:0.1"),
    "breast-cancer": (200, (30,), 2, 0.95, (0.65, 0.9), "linf:0.25"),
}


def test_a_built_in_target_is_accurate_and_breakable(target: Target) -> None:
    n, shape, classes, clean, (least, most), threat = EXPECTED[target.name]
    assert (target.data.x.shape, target.model.classes) == ((n, *shape), classes)
    assert len(target.class_names) == classes
    assert np.bincount(target.data.y, minlength=classes).min() > n / classes / 2
    assert target.builtin
    assert (target.suite, [one.name for one in target.threats]) == ("standard", [threat])
    model, x, y = target.model, torch.from_numpy(target.data.x), torch.from_numpy(target.data.y)
    assert isinstance(model, Classifier)
    assert right(model, x, y) >= clean
    with model.ready(torch.device("cpu")):
        streams = Streams.derive(0, "pgd", torch.arange(n))
        adversarial = pgd(model, x, y, threat=target.threats[0], streams=streams, steps=20)
        assert target.threats[0].around(x).contains(adversarial).all()
        assert least < right(model, adversarial, y) < most


def test_the_data_are_golden(target: Target) -> None:
    # Another split or another scale would make old reports incomparable.
    assert (
        target.data.sha256[:16]
        == {"digits": "301fa363c7e98c78", "breast-cancer": "dae4b23e0d6df6ab"}[target.name]
    )


def test_breast_cancer_says_what_an_attacker_can_do(cache: Path) -> None:
    inputs = load_target("breast-cancer").model.inputs
    immutable = [inputs.features[index] for index in inputs.immutable]
    assert len(immutable) == 10
    assert all(name.endswith("error") for name in immutable)
    assert inputs.scale == inputs.std
    assert min(inputs.bounds[0]) >= 0
    assert load_target("breast-cancer").class_names == ("malignant", "benign")


def test_the_second_time_comes_from_the_cache(target: Target, cache: Path, monkeypatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "_train", refuse)
    assert (cache / f"{target.name}-v1.safetensors").is_file()
    assert load_target(target.name).model.fingerprint() == target.model.fingerprint()


def tiny(name: str = "tiny") -> Classifier:
    x = torch.linspace(0, 1, 60).view(20, 3)
    recipe = Recipe(name, 1, lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), epochs=2)
    return trained(recipe, x, (x.sum(1) > 1.5).long(), InputSpec(shape=(3,)), classes=2)


def test_training_is_repeatable_and_leaves_no_trace(tmp_path: Path, monkeypatch) -> None:
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    prints = []
    for folder in ("a", "b"):
        monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path / folder))
        torch.rand(1)
        prints.append(tiny().fingerprint())
        torch.set_rng_state(before)
    assert prints[0] == prints[1]
    monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path / "c"))
    tiny()
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("damage", [b"", b"junk", b"\x80\x04K\x01.", None])
def test_a_damaged_cache_is_replaced(tmp_path: Path, monkeypatch, damage: bytes | None) -> None:
    monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path))
    expected = tiny().fingerprint()
    file = tmp_path / "tiny-v1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert tiny().fingerprint() == expected
    assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path: Path, monkeypatch) -> None:
    blocked = tmp_path / "a file, not a folder"
    blocked.write_text("")
    monkeypatch.setenv("ROBUSTML_CACHE", str(blocked / "cache"))
    model = tiny()
    monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path / "good"))
    assert model.fingerprint() == tiny().fingerprint()
    (tmp_path / "folder" / "tiny-v1.safetensors").mkdir(parents=True)
    monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path / "folder"))
    assert model.fingerprint() == tiny().fingerprint()


def test_where_the_cache_lies(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("ROBUSTML_CACHE")
    monkeypatch.setattr(training.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "robustml"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "robustml"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(training.sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "robustml"
    monkeypatch.setattr(training.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert cache_folder() == tmp_path / "local" / "robustml" / "cache"


def test_a_split_is_a_partition() -> None:
    train, test = held_out(50, 20)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(50))
    assert (len(train), test[:5].tolist()) == (30, [43, 46, 25, 48, 28])


def test_loading_works_where_gradients_are_off(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("ROBUSTML_CACHE", str(tmp_path))
    with torch.inference_mode():
        model = load_target("breast-cancer").model
    assert isinstance(model, Classifier)
    assert not any(parameter.is_inference() for parameter in model.parameters())


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="did you mean 'breast-cancer'"):
        load_target("breast-cancr")
