import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from polypath.diagnosis import (
    gate_mass,
    imbalance,
    mean_entropy,
    share_of,
    shares,
    underused,
    violations,
)
from polypath.errors import InputError
from polypath.routing import Routing

from .conftest import routings, units


@given(routings())
def test_shares_count_choices(routing: Routing) -> None:
    chosen = Counter(expert for split in units(routing) for expert in split)
    total = max(sum(chosen.values()), 1)
    expected = [chosen[e] / total for e in range(routing.num_experts)]
    assert shares(routing).tolist() == pytest.approx(expected)
    assert float(shares(routing).sum()) == pytest.approx(1.0 if chosen else 0.0)


@given(routings())
def test_imbalance_is_the_excess_of_the_busiest(routing: Routing) -> None:
    chosen = Counter(expert for split in units(routing) for expert in split)
    mean = sum(chosen.values()) / routing.num_experts
    expected = (max(chosen.values()) - mean) / mean if chosen else 0.0
    assert imbalance(routing) == pytest.approx(expected)


@given(routings())
def test_mean_entropy_is_over_things_that_count(routing: Routing) -> None:
    entropies = [
        -sum(p * math.log(p) for p in row if p > 0)
        for i, row in enumerate(routing.probabilities.tolist())
        if routing.mask is None or routing.mask[i]
    ]
    if entropies:
        expected = sum(entropies) / len(entropies)
        assert mean_entropy(routing) == pytest.approx(expected, abs=1e-5)
    else:
        assert math.isnan(mean_entropy(routing))


def test_limits() -> None:
    experts = torch.arange(8).view(8, 1) % 4
    even = Routing(torch.zeros(8, 4), experts, torch.ones(8, 1), torch.full((8, 4), 0.25))
    assert imbalance(even) == pytest.approx(0.0)
    assert mean_entropy(even) == pytest.approx(math.log(4))
    one = replace(even, experts=torch.zeros(8, 1, dtype=torch.int64))
    assert imbalance(one) == pytest.approx(3.0)
    with pytest.raises(InputError, match="no probabilities"):
        mean_entropy(replace(even, probabilities=None))


def by_load(*loads: int) -> Routing:
    """A routing in which expert e serves loads[e] things, one expert each."""
    chosen = torch.tensor([e for e, load in enumerate(loads) for _ in range(load)])[:, None]
    scores = torch.zeros(len(chosen), len(loads))
    return Routing(scores, chosen, torch.ones(len(chosen), 1), scores.softmax(-1))


def test_violations_of_an_even_load_and_of_a_single_expert() -> None:
    assert violations([by_load(2, 2, 2)]).tolist() == [0, 0, 0]
    assert violations([by_load(0, 0, 9, 0)]).tolist() == [-1, -1, 3, -1]
    assert violations([by_load(0, 4), by_load(4, 0)]).tolist() == [0, 0]


@given(routings())
def test_violations_have_mean_zero(routing: Routing) -> None:
    found = violations([routing])
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(found.max()) == pytest.approx(imbalance(routing))


def test_experts_below_a_tenth_of_the_mean_are_underused() -> None:
    assert underused([by_load(0, 1, 19, 20)]) == 0.25  # the mean is 10: 1 is a tenth, not below
    assert underused([by_load(0, 1, 19, 20)], 0.2) == 0.5
    assert underused([by_load(0, 1, 19, 20), by_load(20, 19, 1, 0)]) == 0.0


def test_share_of_some_experts_and_the_mass_of_the_gate() -> None:
    routing = by_load(1, 2, 3)
    assert share_of(routing, range(2)) == pytest.approx(0.5)
    assert gate_mass(routing) == 1.0
    flat = replace(routing, weights=routing.weights / 3, mask=torch.arange(6) < 2)
    assert gate_mass(flat) == pytest.approx(1 / 3)
