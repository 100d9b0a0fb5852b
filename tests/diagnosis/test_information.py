"""Mutual information of gates, balance and likeness of experts: worked numbers, brute force."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polypath.diagnosis import balance, expert_similarity, gate_information
from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.routing import HashRouter, Routing, RoutingContext


def routing(gates: Tensor, k: int = 2) -> Routing:
    experts = gates.topk(min(k, gates.shape[1])).indices
    return Routing(gates.log(), experts, gates.gather(1, experts), gates)


def information(a: Tensor, b: Tensor, seed: int = 0) -> tuple[float, float]:
    return gate_information(routing(a), routing(b), torch.Generator().manual_seed(seed))


def slow(a: list[float], b: list[float]) -> float:
    """Mutual information of two lists of values in bins of a hundredth, as the definition reads."""
    x = [min(99, int(value * 100)) for value in a]
    y = [min(99, int(value * 100)) for value in b]
    n, both = len(x), Counter(zip(x, y, strict=True))
    return sum(
        c / n * math.log(c * n / (Counter(x)[i] * Counter(y)[j])) for (i, j), c in both.items()
    )


@given(st.integers(1, 5), st.integers(2, 7), st.integers(0, 99))
def test_information_follows_its_definition(things: int, experts: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, things, experts, dtype=torch.float64, generator=generator).softmax(-1)
    expected = sum(slow(x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)) / things
    assert information(a, b)[0] == pytest.approx(expected, abs=1e-12)


def test_worked_numbers_of_sixteen_experts() -> None:
    one, other = torch.eye(16)[:1], torch.eye(16)[1:2]
    assert information(one, one)[0] == pytest.approx(0.2338, abs=5e-5)
    assert information(one, other)[0] == pytest.approx(0.0042, abs=5e-5)
    even = torch.full((1, 16), 1 / 16)
    assert information(even, even)[0] == pytest.approx(0)


@pytest.mark.parametrize(
    ("spread", "independent", "identical"),
    [(0.1, 0.158, 0.933), (0.5, 1.259, 1.964), (1, 1.492, 2.099), (2, 0.843, 1.611)],
)
def test_flat_gates_alone_have_information_which_the_control_shows(
    spread: float, independent: float, identical: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = (spread * torch.randn(2, 4000, 16, generator=generator)).softmax(-1)
    found, control = information(a, b)
    assert found == pytest.approx(independent, abs=0.04)
    assert control == pytest.approx(found, abs=0.02)
    found, control = information(a, a)
    assert found == pytest.approx(identical, abs=0.04)
    assert control == pytest.approx(independent, abs=0.04)


def test_padding_counts_for_nothing() -> None:
    gates = torch.randn(9, 5).softmax(-1)
    mask = torch.arange(9) < 6
    masked = Routing(gates.log(), gates.topk(2).indices, gates.topk(2).values, gates, mask)
    generator = torch.Generator().manual_seed(0)
    found = gate_information(masked, masked, generator).information
    assert found == pytest.approx(information(gates[:6], gates[:6])[0])
    assert balance(masked) == balance(routing(gates[:6]))


def test_balance_of_known_gates() -> None:
    gates = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])
    inner, outer = balance(routing(gates))
    assert inner == pytest.approx(2.0)
    assert outer == pytest.approx(0.9)
    inner, outer = balance(routing(gates, k=1))
    assert math.isnan(inner) and outer == pytest.approx(0.6)


def test_alike_and_orthogonal_experts() -> None:
    bank = FeedForwardExperts(4, 8, 6)
    for parameter in bank.parameters():
        parameter.data[:] = parameter.data[:1].clone()
    assert expert_similarity(bank) == pytest.approx(1)
    for parameter in bank.parameters():
        parameter.data.zero_()
    for e in range(4):
        bank.gate_up_proj.data[e, :, e] = 1.0
        bank.down_proj.data[e, e] = 1.0
    assert expert_similarity(bank) == pytest.approx(1 / 4)
    assert expert_similarity(FeedForwardExperts(64, 256, 8)) == pytest.approx(1 / 64, abs=0.01)


def test_what_does_not_fit_is_refused() -> None:
    generator = torch.Generator()
    hashed = HashRouter(3)(torch.randn(4, 2), RoutingContext(tokens=torch.arange(4)))
    with pytest.raises(InputError, match="no probabilities"):
        gate_information(hashed, hashed, generator)
    gates = torch.randn(4, 3).softmax(-1)
    with pytest.raises(InputError, match="the same are needed"):
        gate_information(routing(gates), routing(gates[:3]), generator)
