"""Whatever is wrong with what the user gave: one line, exit code 2, and nothing left behind."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch


def expect_refusal(refused, bench, said: str, *flags: str) -> None:
    line = refused("stress", bench.folder, "--out", "run", *flags)
    assert said in line
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--threat", "linf:8"], "did you mean 8/255?"),
        (["--threat", "lnf:0.1"], "norm 'lnf' is not known; did you mean"),
        (["--threat", "linf"], "linf"),
        (["--threat", "linf:0.1", "--threat", "linf:0.1"], "threats names linf:0.1 twice"),
        (["--suite", "standart"], "did you mean 'standard'?"),
        (["--suite", "none.toml"], "suite 'none.toml' cannot be read"),
        (["--samples", "41"], "samples=41 is more than the 40 samples"),
        (["--samples", "0"], "'--samples': 0 is not in the range"),
        (["--samples", "ten"], "'ten' is not a valid integer"),
        (["--select", "firs"], "did you mean 'first'?"),
        (["--seed", "-1"], "'--seed': -1 is not in the range"),
        (["--seed", str(2**63)], "'--seed'"),
        (["--batch-size", "0"], "'--batch-size'"),
        (["--draws", "1"], "'--draws': 1 is not in the range"),
        (["--eot", "0"], "'--eot': 0 is not in the range"),
        (["--goal", "0-1"], "goal '0-1' is not of the form SOURCE->TARGET, as in '3->8' or '*->0'"),
        (["--goal", "0->nine"], "goal '0->nine': 'nine' is not the name of a class"),
        (["--goal", "0->3"], "goal '0->3': '3' is not a class from 0 to 2"),
        (["--goal", "1->1"], "turns a class into itself"),
        (["--goal", "0->*"], "needs one class as its target"),
        (["--goal", "0->1", "--goal", "0 -> 1"], "goals names '0 -> 1' twice"),
        (["--device", "gpu"], "device='gpu' cannot be used"),
        (["--shard", "3/2"], "shard '3/2' is not a part of a whole, as in 1/2"),
        (["--shard", "0/2"], "shard '0/2'"),
        (["--shard", "half"], "shard 'half'"),
        (["--time-budget", "soon"], "'soon' is not a duration above 0, as in 90s"),
        (["--time-budget", "0"], "'0' is not a duration"),
        (["--max-passes", "inf"], "inf is not a finite number"),
        (["--max-passes", "nan"], "nan is not"),
        (["--max-passes", "0"], "'--max-passes'"),
        (["--confidence", "1"], "'--confidence'"),
        (["--confidence", "nan"], "nan is not"),
        (["--gate", "evasion"], "is not of the form FIGURE>=NUMBER"),
        (["--gate", "evason>=40"], "gate figure 'evason' is not known; did you mean 'evasion'?"),
        (["--gate", "evasion>=400"], "a number from 0 to 100"),
        (["--resume", "none"], "--out and --resume name different folders"),
        (["--smaples", "3"], "did you mean one of: '--max-passes', '--samples'?"),
        (["surplus"], "unexpected extra argument (surplus)"),
        (["--merge", "none"], "'none' is not a run folder"),
    ],
)
def test_flags_that_cannot_be(bench, refused, flags: list[str], said: str) -> None:
    expect_refusal(refused, bench, said, *flags)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("robustml.toml", "weights =", "weight =", "model.weight is not known; did you mean 'weights'?"),
        ("robustml.toml", "test.npz", "tset.npz", "tset.npz does not exist"),
        ("robustml.toml", "model.py:build", "modle.py:build", "modle.py does not exist"),
        ("robustml.toml", "model.py:build", "model.py:built", "has no 'built'; did you mean 'build'?"),
        ("robustml.toml", "weights.safetensors", "weight.safetensors", "weight.safetensors does not exist"),
        ("robustml.toml", "classes = 3", "classes = 4", "(16, 3)"),
        ("robustml.toml", "[1, 4, 4]", "[1, 4, 5]", "x has shape (40, 1, 4, 4)"),
        ("robustml.toml", "linf:0.05", "linf:8", "did you mean 8/255?"),
        ("robustml.toml", "[stress]", "[stress]\ngoals = ['1->4']", "stress.goals: goal '1->4': '4' is not"),
        ("robustml.toml", "[stress]", "[stress]\ndraws = 1", "stress.draws=1 is not accepted"),
        ("robustml.toml", "[stress]", "[stress]\ngoal = []", "goal is not known; did you mean 'goals'?"),
        ("robustml.toml", '["linf:0.05"]', "[]", "threats is empty; give at least one"),
        ("robustml.toml", "[stress]", "[gate]\nevason = '>= 1'\n[stress]", "did you mean 'evasion'?"),
        ("tiny.toml", 'use = "pgd"', 'use = "pdg"', "attack 'pdg' is not known; did you mean 'pgd'?"),
        ("tiny.toml", "steps = 3", "stpes = 3", "stpes is not known; did you mean 'steps'?"),
        ("tiny.toml", "steps = 3", "steps = 0", "steps=0 is not accepted"),
        ("tiny.toml", "name =", "nmae =", "nmae is not known; did you mean 'name'?"),
        ("model.py", "return Net().eval()", "return Net()", "training mode"),
        ("model.py", "return self.layers(x)", "return self.layers(x).softmax(1)", "returns probabilities"),
        ("model.py", "return self.layers(x)", "return self.layers(x) * float('nan')", "returns NaN"),
        ("model.py", "return self.layers(x)", "return [x]", "returned list"),
        ("model.py", "return self.layers(x)", "return self.layer(x)", "has no attribute 'layer'"),
        ("model.py", "return Net().eval()", "raise RuntimeError('no\\nweights')", "raised RuntimeError"),
        ("model.py", "return Net().eval()", "raise SystemExit(0)", "raised SystemExit"),
        ("model.py", "return Net().eval()", "return 3", "returned int, not a torch.nn.Module"),
        ("model.py", "class Net", "class Net(", "raised SyntaxError"),
    ],
)
def test_files_that_are_wrong(bench, refused, file: str, old: str, new: str, said: str) -> None:
    if said == "training mode":
        bench.edit("nn.ReLU()", "nn.Dropout(0.5)", "model.py")
    bench.edit(old, new, file)
    expect_refusal(refused, bench, said)


def test_data_that_cannot_be_used(bench, refused) -> None:
    x, y = bench.x, bench.y
    nan, high, label = x.copy(), x.copy(), y.copy()
    nan[7, 0, 1, 1] = np.nan
    high[3, 0, 0, 0] = 200
    label[5] = 3
    ragged = np.array([[1.0], [1.0, 2.0]], dtype=object)
    for images, labels, said in (
        (nan, y, "x has NaN or infinity in 1 sample, the first is x[7]"),
        (high, y, "are these 0..255 images? divide by 255"),
        (x - 0.5, y, "use (x + 1) / 2"),
        (x[:, :, :3], y, "x has shape (40, 1, 3, 4); (n, 1, 4, 4) is wanted"),
        (x, label, "y[5] is 3, outside [0, 2]"),
        (x, y[:39], "x has 40 samples and y has 39 labels"),
        (x, np.eye(3)[y], "are these one-hot? pass y.argmax(1)"),
        (x, y + 0.5, "labels are whole numbers"),
        (x[:0], y[:0], "x and y are empty"),
        (ragged, y, "holds Python objects, which are pickles and could run code"),
    ):
        bench.save(images, labels)
        expect_refusal(refused, bench, said)
    (bench.folder / "test.npz").write_bytes(pickle.dumps({"x": x, "y": y}))
    expect_refusal(refused, bench, "is not a whole .npz file")


def test_a_pickle_is_never_opened_as_weights(bench, refused) -> None:
    class Trap:
        def __reduce__(self):
            return Path.touch, (bench.folder / "sprung",)

    for name, said in (("w.pkl", "can run code"), ("w.pt", "is refused"), ("w.safetensors", "is a pickle")):
        (bench.folder / name).write_bytes(pickle.dumps(Trap()))
        bench.edit("weights.safetensors", name)
        expect_refusal(refused, bench, said)
        bench.edit(name, "weights.safetensors")
    torch.save({"layers": Trap()}, bench.folder / "w.pth")
    bench.edit("weights.safetensors", "w.pth")
    expect_refusal(refused, bench, "is refused")
    assert not (bench.folder / "sprung").exists()


def test_a_target_that_is_not_there(tmp_path: Path, monkeypatch, refused) -> None:
    monkeypatch.chdir(tmp_path)
    assert "did you mean 'digits'?" in refused("stress", "digit")
    assert "'a.toml' does not exist" in refused("stress", "a.toml")
    assert "holds no robustml.toml; run robustml init" in refused("stress")
    assert "holds no robustml.toml" in refused("doctor")
    assert list(tmp_path.iterdir()) == []


def test_a_nan_that_shows_up_only_in_the_run_leaves_no_folder(bench, refused) -> None:
    bench.x[30] = 0
    bench.save(bench.x, bench.y)
    bench.edit("self.layers(x)", "self.layers(x) + 0 / (x.flatten(1).sum(1, keepdim=True) > 0)", "model.py")
    expect_refusal(refused, bench, "NaN or infinity for sample 30", "--batch-size", "8")


def test_terminal_escapes_do_not_come_through(bench, refused, command) -> None:
    for words in (
        ["stress", "a\x1b[31m.toml"],
        ["stress", str(bench.folder), "--suite", "\x1b]0;title\x07"],
        ["stress", str(bench.folder), "--\x1b[2J"],
        ["describe", "\x1b[31mred"],
        ["\x1b[31m"],
        ["report", "\x1b[31m"],
    ):
        line = refused(*words)
        assert line.isprintable()
    bench.edit("classes = 3", 'classes = 3\nname = "net\\u001b[31m\\u202e"')
    bench.edit('name = "tiny"', 'name = "ti\\u001b[2Jny"\ndescription = "\\u001b[1mbold"', "tiny.toml")
    for words in (["doctor", bench.folder], ["describe", bench.folder / "tiny.toml"]):
        outcome = command(*words)
        assert outcome.code == 0, outcome
        assert all(text.isprintable() for text in outcome.out.splitlines())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stres"], "no such command 'stres'; did you mean 'stress'?"),
        (["list", "attack"], "'attack' is not known; did you mean 'attacks'?"),
        (["describe", "apdg"], "'apdg' is not known; did you mean 'apgd'?"),
        (["describe", "none.toml"], "cannot be read"),
        (["describe"], "missing argument 'NAME'"),
        (["report", "none"], "cannot read 'none'"),
        (["report", "."], "'.' holds no report.json; is it a run folder?"),
        (["verify", "none"], "'none' is not a run folder"),
        (["compare", "none", "none"], "cannot read 'none'"),
        (["compare", "none"], "missing argument 'AFTER'"),
        (["compare", "a", "b", "--max-drop", "nan"], "nan is not"),
        (["stress", "--out"], "option '--out' requires an argument"),
    ],
)
def test_other_verbs_are_as_clear(tmp_path: Path, monkeypatch, refused, words: list[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(*words)
