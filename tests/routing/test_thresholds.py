"""Rules of how many experts, one thing at a time and by the numbers of the specification."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

from polypath.errors import InputError
from polypath.routing import RoutingContext, Threshold

EMPTY = RoutingContext()
INF = float("inf")


def chosen(
    gates: Tensor, rule: str, value: float = 0.5, most: int | None = None
) -> list[list[int]]:
    experts = Threshold(rule, value, most)(gates, gates, EMPTY)
    return [[e for e in row if e >= 0] for row in experts.tolist()]


def slow(gates: list[float], rule: str, value: float) -> set[int]:
    """As the rule reads, of gates that sum to one."""
    order = sorted(range(len(gates)), key=lambda e: -gates[e])
    if rule == "percentile":
        kept = {e for e in order if gates[e] > np.quantile(gates, value)}
    elif rule == "mass":
        kept, sum_ = set(), 0.0
        for e in order:
            if sum_ < value:
                kept.add(e)
                sum_ += gates[e]
    elif rule == "relative":
        kept = {e for e in order if gates[e] >= value * max(gates)}
    elif rule == "mean":
        kept = {e for e in order if gates[e] > sum(gates) / len(gates)}
    elif rule == "absolute":
        kept = {e for e in order if gates[e] > value}
    else:
        kept = set(order[: int(value)])
    return kept or {order[0]}


RULES = ["percentile", "mass", "relative", "mean", "absolute", "top"]


@drawn(st.sampled_from(RULES), st.integers(1, 9), st.integers(0, 5000), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=200)
def test_every_rule_as_it_reads(rule: str, count: int, seed: int, value: float) -> None:
    logits = torch.randn(3, count, generator=torch.Generator().manual_seed(seed)).double()
    gates = logits.softmax(-1)
    value = float(max(1, round(value * count))) if rule == "top" else value
    for row, found in zip(gates.tolist(), chosen(gates, rule, value), strict=True):
        assert set(found) == slow(row, rule, value)
        assert found == sorted(found, key=lambda e: -row[e]), "first choices first"


@pytest.mark.parametrize("count", range(1, 33))
def test_a_percentile_keeps_the_same_number_of_all(count: int) -> None:
    gates = torch.randn(50, count, generator=torch.Generator().manual_seed(count)).softmax(-1)
    for tau in (0.0, 0.1, 0.2, 0.25, 0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95):
        exact = math.floor(round(tau * (count - 1), 9))
        assert {len(row) for row in chosen(gates, "percentile", tau)} == {max(1, count - 1 - exact)}


def test_the_counts_of_the_specification() -> None:
    known = {8: [6, 4, 2, 1], 16: [12, 8, 4, 2], 6: [4, 3, 2, 1], 4: [3, 2, 1, 1], 3: [2, 1, 1, 1]}
    for count, expected in known.items():
        gates = torch.randn(5, count, generator=torch.Generator().manual_seed(0)).softmax(-1)
        found = [chosen(gates, "percentile", tau) for tau in (0.25, 0.5, 0.75, 0.9)]
        assert [{len(row) for row in rows} for rows in found] == [{n} for n in expected]


def test_scale_and_temperature_leave_a_percentile_its_count() -> None:
    logits = torch.randn(40, 8, generator=torch.Generator().manual_seed(0)).double()
    for scale in (0.1, 1.0, 5.0):
        assert {len(row) for row in chosen((scale * logits).softmax(-1), "percentile")} == {4}
        noisy = (scale * logits).softmax(-1) + 0.1 * torch.randn(40, 8).double()
        assert {len(row) for row in chosen(noisy, "percentile")} == {4}


def test_the_other_rules_follow_how_sure_a_gate_is() -> None:
    """Mean counts of eight experts with normal logits, as the specification computed them."""
    known = {
        ("mass", 0.5): [3.10, 2.20, 1.44, 1.15],
        ("relative", 0.3): [6.51, 3.65, 2.15, 1.49],
        ("mean", 0.5): [3.37, 2.83, 2.15, 1.63],
    }
    logits = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0)).double()
    for (rule, value), expected in known.items():
        for scale, mean in zip((0.5, 1.0, 2.0, 4.0), expected, strict=True):
            experts = Threshold(rule, value)(
                (scale * logits).softmax(-1), (scale * logits).softmax(-1), EMPTY
            )
            found = float((experts >= 0).sum(-1).double().mean())
            assert found == pytest.approx(mean, abs=0.08), (rule, scale)


def test_ties_and_even_gates() -> None:
    assert chosen(torch.tensor([[0.25] * 4]), "percentile") == [[0]]
    assert chosen(torch.tensor([[0.4, 0.2, 0.2, 0.2]]), "percentile", 0.25) == [[0]]
    assert chosen(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), "percentile", 0.0) == [[1, 3, 2]]
    assert chosen(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), "mass", 1.0, most=2) == [[1, 3]]


def test_experts_that_may_not_be_chosen_are_not_there() -> None:
    scores = torch.tensor([[0.3, -INF, 0.2, 0.1], [-INF] * 4])
    gates = scores.clamp_min(0)
    experts = Threshold("percentile", 0.5)(scores, gates, EMPTY)
    assert experts.tolist() == [[0], [-1]]
    assert Threshold("mean")(scores, gates, EMPTY).tolist() == [[0], [-1]]
    assert Threshold("mass", 1.0)(scores, gates, EMPTY)[0].tolist() == [0, 2, 3]


def test_nothing_to_choose_for() -> None:
    assert Threshold()(torch.zeros(0, 4), torch.zeros(0, 4), EMPTY).shape == (0, 1)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("median",), "unknown rule 'median'"),
        (("percentile", 1.5), "'percentile' rule of value=1.5; 0 to 1 is right"),
        (("top", 0.0), "'top' rule of value=0.0; 1 to inf"),
        (("mass", 0.5, 0), "most=0"),
    ],
)
def test_what_cannot_be_is_refused(values: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        Threshold(*values)
