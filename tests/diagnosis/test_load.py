import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from polypath.diagnosis import imbalance, mean_entropy, shares
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
