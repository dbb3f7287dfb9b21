"""What every registered attack owes to the harness."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from robustml.errors import InputError
from robustml.inputs import InputSpec
from robustml.registry import Access, all_attacks, find_attack
from robustml.threats import L0, L1, L2, Linf

NAMES = sorted(all_attacks())
# Options that make a run tiny, where an attack has them.
TINY = {"steps": 3, "queries": 12, "draws": 3, "restarts": 1}
THREATS = {"linf": Linf(0.05), "l2": L2(0.4), "l1": L1(1.5), "l0": L0(2)}
CASES = [(name, norm) for name in NAMES for norm in sorted(all_attacks()[name].norms)]


def tiny(name: str) -> dict[str, int]:
    known = {option for option, _, _ in find_attack(name).parameters()}
    return {key: value for key, value in TINY.items() if key in known}


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is(name) -> None:
    attack = find_attack(name)
    assert re.search(r"(19|20)\d\d", attack.reference), "a reference gives the year"
    assert attack.summary.endswith(".") and 20 <= len(attack.summary) <= 110
    assert attack.norms and attack.norms <= THREATS.keys()
    assert isinstance(attack.access, Access)


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_json(name) -> None:
    attack = find_attack(name)
    full = attack.check(tiny(name))
    assert set(full) == {option for option, _, _ in attack.parameters()}
    assert attack.check(json.loads(json.dumps(full))) == full


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options_are_named(name) -> None:
    with pytest.raises(InputError, match="stepz is not known"):
        find_attack(name).check({"stepz": 1})


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_tiny_run_keeps_the_rules(run, tiny_cnn, images, name, norm) -> None:
    x, y = images
    original, torch_state, numpy_state = x.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    threat = THREATS[norm].within(InputSpec(shape=(2, 6, 6)))
    z = run(name, tiny_cnn, x, y, threat, **tiny(name))
    assert z.shape == x.shape and z.dtype == x.dtype
    # What is nearest to an input may lie beyond the budget, but not beyond what is valid.
    reach = threat.unbounded() if find_attack(name).minimum else threat
    assert reach.around(x).contains(z).all()
    assert torch.equal(x, original)
    assert not z.requires_grad
    assert torch.equal(torch_state, torch.get_rng_state())
    assert np.array_equal(numpy_state, np.random.get_state()[1])
    assert torch.equal(z, run(name, tiny_cnn, x, y, threat, **tiny(name)))


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_that_is_wrong_from_the_start_stays_broken(run, tiny_cnn, images, name) -> None:
    x, y = images
    norm = sorted(find_attack(name).norms)[-1]
    threat = THREATS[norm].at(1.0 if norm == "l0" else 1e-4).within(InputSpec(shape=(2, 6, 6)))
    z = run(name, tiny_cnn, x, (y + 1) % 4, threat, **tiny(name))
    assert (tiny_cnn(z).argmax(1) != (y + 1) % 4).all()


def test_unknown_attacks_get_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'square'"):
        find_attack("sqare")
