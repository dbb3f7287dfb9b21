"""Models under attack: what they return, what they refuse, and that an attack leaves no trace on them."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustml.classifier import BlackBox, Classifier, mode_dependent_layers
from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import Access

IMAGE = InputSpec(shape=(3, 4, 4), mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
TABLE = InputSpec(shape=(4,), bounds=(-10, 10))
CPU = torch.device("cpu")


def network(seed: int = 0) -> nn.Sequential:
    """A small one with everything that has a training mode; its weights do not depend on global state."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    net.append(nn.Linear(8, 5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))


class Constant(nn.Module):
    """Answers with what it was given, whatever it is asked."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer


def constant(answer: Any, outputs: Any = "logits", classes: int = 3) -> Classifier:
    return Classifier(Constant(answer), inputs=TABLE, classes=classes, outputs=outputs)


def test_normalization_happens_inside() -> None:
    net = network().eval()
    x = images()
    by_hand = (x - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    model = Classifier(net, inputs=IMAGE, classes=5)
    assert torch.equal(model(x), net(by_hand))
    assert model.access is Access.GRADIENT
    assert model.size == sum(p.numel() for p in net.parameters())


def test_gradients_reach_the_input() -> None:
    x = images().requires_grad_()
    model = Classifier(network().eval(), inputs=IMAGE, classes=5)
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    assert gradient.abs().sum() > 0


def test_probabilities_become_log_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0]])
    logits = constant(probabilities, "probabilities")(torch.zeros(2, 4))
    assert torch.equal(logits[0], probabilities[0].log())
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(1), probabilities)


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_one_logit_becomes_two(shape: tuple[int, ...]) -> None:
    odds = torch.tensor([-1.0, 0.5, 2.0]).view(shape)
    logits = constant(odds, "binary-logit", classes=2)(torch.zeros(3, 4))
    assert logits.tolist() == [[0, -1], [0, 0.5], [0, 2]]
    torch.testing.assert_close(logits.softmax(1)[:, 1], odds.flatten().sigmoid())


@pytest.mark.parametrize(
    ("answer", "outputs", "classes", "message"),
    [
        (torch.zeros(2, 4), "logits", 3, "module returned shape (2, 4) for 2 inputs"),
        (torch.zeros(2), "logits", 3, "must return (2, 3)"),
        (torch.zeros(3, 3), "probabilities", 3, "module returned shape (3, 3) for 2 inputs"),
        (torch.zeros(2, 2), "binary-logit", 2, "must return (2,) or (2, 1)"),
        (torch.zeros(2, dtype=torch.int64), "logits", 3, "module returned torch.int64"),
        ((torch.zeros(2, 3),), "logits", 3, "module returned tuple"),
        (None, "logits", 3, "module returned NoneType"),
    ],
)
def test_a_module_that_returns_something_else_is_refused(
    answer: Any, outputs: str, classes: int, message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        constant(answer, outputs, classes)(torch.zeros(2, 4))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "model", [constant(torch.zeros(2, 3)), BlackBox(lambda x: x, inputs=TABLE, classes=4)]
)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 5), "x has shape (2, 5); the model takes (n, 4)"),
        (torch.zeros(4), "x has shape (4,); the model takes (n, 4)"),
        (torch.zeros(()), "x has shape ()"),
        (torch.zeros(2, 4, dtype=torch.int64), "x holds torch.int64"),
        (torch.zeros(2, 4, dtype=torch.uint8), "x holds torch.uint8"),
    ],
)
def test_batches_of_another_form_are_refused(model: Any, x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        model(x)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"module": lambda x: x}, "module is function, not a torch.nn.Module; wrap functions in BlackBox"),
        ({"inputs": (3, 4, 4)}, "inputs is tuple, not an InputSpec"),
        ({"classes": 1}, "classes=1 is not a whole number of at least 2"),
        ({"classes": 2.0}, "classes=2.0 is not a whole number of at least 2"),
        ({"classes": True}, "classes=True is not"),
        ({"outputs": "logit"}, "outputs='logit' is not known; did you mean 'logits'?"),
        ({"outputs": None}, "outputs=None is not known"),
        ({"outputs": "labels"}, 'outputs="labels" has no gradient; wrap the model in BlackBox'),
        ({"outputs": "binary-logit"}, 'outputs="binary-logit" stands for 2 classes, not 5'),
    ],
)
def test_bad_arguments_are_named(changes: dict[str, Any], message: str) -> None:
    arguments = {"module": network(), "inputs": IMAGE, "classes": 5, **changes}
    with pytest.raises(InputError, match=re.escape(message)):
        Classifier(arguments.pop("module"), **arguments)


def state_of(model: Classifier) -> tuple[Any, ...]:
    return (
        [module.training for module in model.modules()],
        [(parameter.requires_grad, parameter.device, parameter.grad) for parameter in model.parameters()],
        [(name, tensor.clone().tolist()) for name, tensor in model.state_dict().items()],
    )


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("fails", [False, True])
def test_an_attack_leaves_no_trace(fails: bool, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model = Classifier(network(), inputs=IMAGE, classes=5).train()
    model.module[1].eval()  # a frozen batch norm, as in fine-tuning
    model.module[0].weight.requires_grad_(False)
    before = state_of(model)

    def work() -> None:
        with model.ready(torch.device(device)):
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            assert {parameter.device.type for parameter in model.parameters()} == {device}
            x = images().to(device).requires_grad_()
            torch.autograd.grad(model(x).sum(), x)
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            work()
    else:
        work()
    assert state_of(model) == before


def test_a_failure_to_reach_the_device_leaves_no_trace_either() -> None:
    model = Classifier(network(), inputs=IMAGE, classes=5).train()
    before = state_of(model)
    with pytest.raises((RuntimeError, AssertionError)), model.ready(torch.device("cuda:99")):
        pytest.fail("there is no such device")
    assert state_of(model) == before


def test_a_model_without_parameters_can_be_made_ready() -> None:
    model = constant(torch.zeros(2, 3)).train()
    with model.ready(CPU):
        assert not model.training
    assert model.training


def test_the_fingerprint_depends_on_each_weight_and_on_the_normalization() -> None:
    model = Classifier(network(), inputs=IMAGE, classes=5)
    original = model.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", original)
    assert Classifier(network(), inputs=IMAGE, classes=5).fingerprint() == original
    seen = {original}
    with torch.no_grad():
        for name in model.state_dict():
            changed = copy.deepcopy(model)
            flat = changed.state_dict()[name].view(-1)
            flat[-1] += 1
            seen.add(changed.fingerprint())
    other = InputSpec(shape=(3, 4, 4), mean=(0.1, 0.2, 0.30001), std=(0.5, 1.0, 2.0))
    seen.add(Classifier(network(), inputs=other, classes=5).fingerprint())
    seen.add(Classifier(network(), inputs=IMAGE, classes=5, outputs="probabilities").fingerprint())
    seen.add(Classifier(network().double(), inputs=IMAGE, classes=5).fingerprint())
    assert len(seen) == 1 + len(model.state_dict()) + 3


def test_the_fingerprint_does_not_depend_on_order_mode_or_past() -> None:
    class Pair(nn.Module):
        def __init__(self, first: str, second: str) -> None:
            super().__init__()
            for name in (first, second):
                layer = nn.Linear(2, 2)
                nn.init.constant_(layer.weight, len(name))
                nn.init.zeros_(layer.bias)
                setattr(self, name, layer)

    one, two = (Classifier(Pair(*names), inputs=TABLE, classes=2) for names in (("a", "bb"), ("bb", "a")))
    assert list(one.state_dict()) != list(two.state_dict())
    assert one.fingerprint() == two.fingerprint()
    before = one.fingerprint()
    one.eval().requires_grad_(False)
    assert one.fingerprint() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_fingerprint_does_not_depend_on_the_device() -> None:
    model = Classifier(network(), inputs=IMAGE, classes=5)
    assert copy.deepcopy(model).cuda().fingerprint() == model.fingerprint()


def test_mode_dependent_layers_are_named() -> None:
    model = Classifier(network(), inputs=IMAGE, classes=5)
    assert mode_dependent_layers(model.train()) == ["BatchNorm2d at 'module.1'", "Dropout at 'module.3'"]
    assert mode_dependent_layers(model.eval()) == []
    assert mode_dependent_layers(nn.Dropout()) == ["Dropout at 'the top'"]
