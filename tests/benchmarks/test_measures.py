"""The measures of the benchmarks: passes, the floor, what counts as a success, and synchronisations."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import gpu
import kernels
import natives
import overhead
import pytest
import torch
from floor import CLOCKS, Call, Tape, Turns, floor, in_turn, passes, pool_for
from models import resnet18
from peers import JOBS, LIBRARIES, Job
from syncs import Steps, Ticking, watching
from torch import Tensor, nn

from robustml.registry import all_attacks

# The link of that name at the top of the repository would be found first.
FILE = Path(__file__).resolve().parents[2] / "benchmarks" / "attacks.py"
found = importlib.util.spec_from_file_location("attacks_of_libraries", FILE)
assert found is not None
assert found.loader is not None
attacks = sys.modules[found.name] = importlib.util.module_from_spec(found)
found.loader.exec_module(attacks)

CPU = torch.device("cpu")


class Pictures(nn.Module):
    """Two classes of 28x28: is the mean above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(40.0))

    def forward(self, x: Tensor) -> Tensor:
        score = self.weight * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-score, score, *[torch.full_like(score, -9.0)] * 8], dim=1)


def pictures(*levels: float) -> tuple[Tensor, Tensor]:
    x = torch.tensor(levels)[:, None, None, None].expand(-1, 1, 28, 28).contiguous()
    return x, (torch.tensor(levels) > 0.5).long()


def test_a_tape_counts_forward_passes_and_each_gradient_of_the_logits() -> None:
    tape = Tape(Pictures())
    x = torch.rand(6, 1, 28, 28)
    with tape.recording() as calls:
        with torch.no_grad():
            tape(x)
        z = x[:4].clone().requires_grad_()
        logits = tape(z)
        for index in range(3):
            torch.autograd.grad(logits[:, index].sum(), z, retain_graph=True)
        tape(z)
    assert calls == [Call(6, 0), Call(4, 12), Call(4, 0)]
    assert passes(calls) == (14, 12)


def test_the_floor_makes_the_very_passes_that_were_noted_and_no_gradient_of_weights() -> None:
    tape = Tape(Pictures())
    noted = [Call(5), Call(8, 8), Call(3, 9), Call(20)]
    pool = pool_for(torch.rand(8, 1, 28, 28), noted)
    with tape.recording() as calls:
        floor(tape, pool, noted)
    assert calls == noted
    assert tape.net.weight.grad is None
    assert tape.net.weight.requires_grad


def test_ratios_are_of_pairs() -> None:
    turns = Turns(bare=[1.0, 2.0, 4.0], attack=[2.0, 3.0, 4.0])
    assert turns.ratios == [1.0, 1.5, 2.0]
    assert (turns.ratio, turns.best, turns.seconds) == (1.5, 2.0, 3.0)


def test_both_are_timed_in_turn() -> None:
    order: list[str] = []
    turns = in_turn(lambda: order.append("floor"), lambda: order.append("attack"), 3, CLOCKS["cpu"])
    assert order == ["floor", "attack"] * 3
    assert len(turns.bare) == len(turns.attack) == 3


@pytest.mark.parametrize(
    ("change", "distance", "faults"),
    [
        (lambda z: z + 0.2, 0.2, 0),
        (lambda z: z + 0.05, torch.inf, 0),  # the network is right there
        (lambda z: z + 0.31, torch.inf, 1),  # beyond the budget
        (lambda z: z - 0.45, torch.inf, 1),  # below the box
        (lambda z: z * torch.nan, torch.inf, 1),
    ],
)
def test_a_success_is_what_the_check_sees(
    change: Callable[[Tensor], Tensor], distance: float, faults: int
) -> None:
    x, y = pictures(0.4)
    data = attacks.correct(Pictures(), x, y)
    found, outside = attacks.checked(Pictures(), data, change(x), Job("", "linf", 0.3))
    assert found.tolist() == pytest.approx([distance])
    assert outside == faults


def test_a_minimum_norm_attack_may_go_beyond_the_budget_but_not_out_of_the_box() -> None:
    x, y = pictures(0.4, 0.4)
    data = attacks.correct(Pictures(), x, y)
    z = torch.cat([x[:1] + 0.5, x[1:] + 0.7])
    found, outside = attacks.checked(Pictures(), data, z, Job("", "l2", 1.5, minimum=True))
    assert found.tolist() == pytest.approx([0.5 * 28, torch.inf])
    assert outside == 1


def test_who_is_wrong_anyway_is_attacked_by_nobody_and_counts_as_broken() -> None:
    x, y = pictures(0.4, 0.9, 0.45)
    y[2] = 1
    data = attacks.correct(Pictures(), x, y)
    assert (len(data.x), data.wrong, data.count) == (2, 1, 3)


@pytest.mark.parametrize("name", ["pgd", "fmn-l2"])
def test_our_attacks_reach_the_closed_form_in_the_table(name: str) -> None:
    # Linf 0.3 moves the mean by as much; in L2 the nearest point is 28 * |0.5 - mean| away.
    x, y = pictures(0.45, 0.9)
    data, job = attacks.correct(Pictures(), x, y), JOBS[name]
    outcome = attacks.measured(
        LIBRARIES["robustml"].entries[name],
        LIBRARIES["robustml"].load(),
        Tape(Pictures()).eval(),
        data,
        job,
        batch=2,
        repeats=2,
        clock=CLOCKS["cpu"],
    )
    cells = dict(
        zip([*attacks.HEADS[2:], *attacks.COSTS], attacks.cells(data, job, outcome, ""), strict=True)
    )
    assert outcome.outside == 0
    assert outcome.forward > 0
    assert outcome.backward > 0
    if job.minimum:
        assert cells["success %"] == "100.0"
        assert outcome.distances.tolist() == pytest.approx([0.05 * 28, 0.4 * 28], rel=0.02)
        assert cells["robust %"] == "50.0"
    else:
        assert cells["robust %"] == "50.0"
        assert outcome.distances.isfinite().tolist() == [True, False]


def test_each_library_runs_known_jobs_only_and_robustml_all_of_them() -> None:
    assert LIBRARIES["robustml"].entries.keys() == JOBS.keys()
    for library in LIBRARIES.values():
        assert library.entries.keys() <= JOBS.keys()


def test_every_attack_has_a_case_under_each_of_its_norms() -> None:
    found = {(case.name, case.norm) for case in natives.cases(all_attacks(), natives.NORMS)}
    assert found == {(name, norm) for name, attack in all_attacks().items() for norm in attack.norms}
    for case in natives.cases(all_attacks(), natives.NORMS):
        all_attacks()[case.name].check(case.options)


def steps_of(loop: Callable[[nn.Module, Tensor], None]) -> Steps:
    model = Ticking(Pictures())
    with watching(model, CPU) as steps:
        loop(model, torch.rand(4, 1, 28, 28))
    return steps.finish()


def with_item(model: nn.Module, x: Tensor) -> None:
    for _ in range(5):
        model(x).sum().item()


def with_truth(model: nn.Module, x: Tensor) -> None:
    for _ in range(5):
        assert bool((model(x) < 1e9).all())


def with_mask(model: nn.Module, x: Tensor) -> None:
    for _ in range(5):
        x = x.clone()
        x[model(x)[:, 0] < 1e9] = x.flip(0)


def with_list(model: nn.Module, x: Tensor) -> None:
    for _ in range(5):
        model(x).tolist()


def with_numbers(model: nn.Module, x: Tensor) -> None:
    for _ in range(5):
        model(x) * torch.tensor([0.5])


def without(model: nn.Module, x: Tensor) -> None:
    for _ in range(5):
        x = torch.where((model(x)[:, 0] > 0)[:, None, None, None], x, x + 0.1)
        x[:, :, 0][x[:, :, 0] > 0.5] = 0.5


@pytest.mark.parametrize("loop", [with_item, with_truth, with_mask, with_list, with_numbers])
def test_what_would_wait_is_seen_at_each_step(loop: Callable[[nn.Module, Tensor], None]) -> None:
    steps = steps_of(loop)
    assert steps.others == [1, 1, 1, 1]
    assert steps.share == 1


def test_masked_arithmetic_is_no_synchronisation() -> None:
    assert steps_of(without).others == [0, 0, 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_torch_reports_what_waits_on_a_device() -> None:
    device = torch.device("cuda")
    model = Ticking(Pictures()).to(device)
    with watching(model, device) as steps:
        with_item(model, torch.rand(4, 1, 28, 28, device=device))
    assert steps.finish().others == [1, 1, 1, 1]


def test_the_check_who_still_stands_is_told_from_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--attack", "pgd", "--norm", "linf", "--batch", "2", "--width", "2", "--repeats", "1"]
    assert gpu.main(options) == 0
    row = capsys.readouterr().out.splitlines()[-1]
    # Checks come after steps 1, 5, 9, 13, 17, 21 and 25, and then at every eighth, of which there is none.
    assert row.startswith("| pgd | linf | 32 | 0.00 | 0 % | 0.22 |")


def test_the_residual_network_has_the_usual_size() -> None:
    net = resnet18()
    assert sum(parameter.numel() for parameter in net.parameters()) == 11_173_962
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 10)


def test_the_shorter_way_is_timed_where_it_is_taken_and_where_it_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert kernels.main(["--repeats", "1"]) == 0
    rows = [row.split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == len(kernels.LAYERS)
    taken = {row[0].removeprefix("| "): row[-1].removesuffix(" |") for row in rows}
    assert taken["ResNet on ImageNet"] == taken["ViT-B/16"] == "yes"
    assert taken["ResNet on CIFAR-10"] == taken["a layer within"] == "no"
    assert all(float(row[3]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("main", "options", "said"),
    [
        (attacks.main, ["--attack", "pdg"], "pdg"),
        (attacks.main, ["--library", "cleverhans"], "cleverhans"),
        (attacks.main, ["--samples", "0"], "whole number"),
        (attacks.main, ["--data", "nowhere"], "--data"),
        (overhead.main, ["--data", "nowhere"], "--data"),
        (overhead.main, ["--norm", "l3"], "l3"),
        (gpu.main, ["--attack", "pdg"], "pdg"),
        (kernels.main, ["--repeats", "0"], "whole number"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    main: Callable[[list[str]], int], options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(options)
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert said in err
