import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.diagnosis import (
    contingency,
    dependence,
    normalised_mutual_information,
    specialisation,
)
from polypath.errors import InputError
from polypath.routing import Routing

from .conftest import routings, units

tables = st.integers(1, 4).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(0, 9), min_size=width, max_size=width), min_size=1, max_size=5
    )
)


def routing_to(experts: list[int], num_experts: int) -> Routing:
    chosen = torch.tensor(experts)[:, None]
    return Routing(torch.zeros(len(experts), num_experts), chosen, torch.ones(len(experts), 1))


@given(routings(), st.integers(1, 4), st.integers(0, 99))
def test_contingency_is_counted_thing_by_thing(routing: Routing, kinds: int, seed: int) -> None:
    labels = torch.randint(kinds, (len(routing),), generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros(routing.num_experts, kinds, dtype=torch.float64)
    for split, label in zip(units(routing), labels.tolist(), strict=True):
        for expert, part in split.items():
            expected[expert, label] += part
    torch.testing.assert_close(contingency(routing, labels, kinds), expected)


@given(tables)
def test_information_is_that_of_its_definition(counts: list[list[int]]) -> None:
    table = torch.tensor(counts)
    total = int(table.sum())
    rows, columns = table.sum(1).tolist(), table.sum(0).tolist()
    if sum(r > 0 for r in rows) < 2 or sum(c > 0 for c in columns) < 2:
        assert normalised_mutual_information(table) == 0.0
        return
    mutual = sum(
        n / total * math.log(n * total / (rows[i] * columns[j]))
        for i, row in enumerate(counts)
        for j, n in enumerate(row)
        if n
    )
    mean = (scipy.stats.entropy(rows) + scipy.stats.entropy(columns)) / 2
    assert normalised_mutual_information(table) == pytest.approx(mutual / mean, abs=1e-9)


def test_limits(generator: torch.Generator) -> None:
    labels = torch.arange(600) % 3
    told = specialisation(routing_to(labels.tolist(), 3), labels, 3, generator)
    assert told.information == pytest.approx(1.0)
    assert told.control < 0.02
    random = torch.randint(3, (600,), generator=generator)
    untold = specialisation(routing_to(random.tolist(), 3), labels, 3, generator)
    assert untold.information == pytest.approx(untold.control, abs=0.01)


def test_the_control_is_what_independence_shows(generator: torch.Generator) -> None:
    # G = 2 n I is χ² with (E − 1)(L − 1) degrees of freedom when nothing depends on anything.
    experts, labels = torch.arange(4000) % 4, torch.arange(4000) % 5
    found = specialisation(routing_to(experts.tolist(), 4), labels, 5, generator, shuffles=200)
    expected = (4 - 1) * (5 - 1) / (2 * 4000) * 2 / (math.log(4) + math.log(5))
    assert found.control == pytest.approx(expected, rel=0.1)


def test_masked_things_neither_count_nor_lend_labels(generator: torch.Generator) -> None:
    labels = torch.tensor([0, 1] * 50 + [2] * 20)
    routing = routing_to([0, 1] * 50 + [0] * 20, 2)
    masked = replace(routing, mask=labels < 2)
    found = specialisation(masked, labels, 3, generator)
    alone = specialisation(routing[:100], labels[:100], 3, torch.Generator().manual_seed(0))
    assert found == pytest.approx(alone)


def test_labels_have_to_fit() -> None:
    routing = routing_to([0, 1, 1], 2)
    with pytest.raises(InputError, match=r"3 things, but labels \(2,\)"):
        contingency(routing, torch.tensor([0, 1]), 2)
    with pytest.raises(InputError, match=r"not within 0\.\.1"):
        contingency(routing, torch.tensor([0, 1, 2]), 2)


def test_layers_that_agree_depend_on_each_other_and_independent_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, other = torch.randint(4, (2, 4000, 1), generator=generator)
    scores, ones = torch.zeros(4000, 4), torch.ones(4000, 1)
    one, same = Routing(scores, chosen, ones), Routing(scores, (chosen + 1) % 4, ones)
    found, control = dependence(one, same, generator)
    assert found == pytest.approx(1)
    assert control < 0.01
    assert dependence(one, Routing(scores, other, ones), generator).information < 0.01
