import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polypath.errors import InputError
from polypath.experts.layouts import linears
from polypath.routing import LoadBalance, RoutingContext
from polypath.surgery.convert import routed_layer
from polypath.surgery.granular import Granular
from polypath.surgery.slices import DenseLayer


def dense(dim: int, width: int) -> tuple[nn.Sequential, DenseLayer]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
    found = linears(network)
    return network, DenseLayer({"up": found["0"], "down": found["2"]}, "relu", network[2])


@given(
    copies=st.integers(1, 4),
    k=st.integers(1, 4),
    units=st.integers(1, 3),
    seed=st.integers(0, 20),
    apart=st.booleans(),
)
def test_the_start_is_the_layer_itself(
    copies: int, k: int, units: int, seed: int, apart: bool
) -> None:
    network, layer = dense(4, k * units)
    routed = routed_layer(layer, Granular(copies, k, seed=seed, apart=apart, balance=0.0))
    x = torch.randn(9, 4)
    torch.testing.assert_close(routed(x), network(x), rtol=1e-4, atol=1e-5)
    assert routed.last is not None
    chosen = routed.last.experts.sort(1).values
    assert (chosen // k == chosen[:, :1] // k).all()  # one copy
    assert (chosen % k == torch.arange(k)).all()  # each slice of it
    torch.testing.assert_close(routed.last.weights, torch.ones(9, k))


def test_the_worked_check() -> None:
    """Property 7: logits tied for two slices, and three ways to weigh them."""
    z = torch.tensor([[0.158, 0.158, -1.241, -1.241, -1.059, -1.059]])
    full = z.softmax(-1)[0, :2]
    assert full.tolist() == pytest.approx([0.324, 0.324], abs=1e-3)
    _, layer = dense(4, 8)
    routed = routed_layer(layer, Granular(3, 2))
    weights = routed.router.gate.weights(z, z.softmax(-1), torch.tensor([[0, 1]]))
    assert weights.tolist() == [[1.0, 1.0]]


def test_one_slice_is_upcycling_whose_router_the_task_cannot_teach() -> None:
    """Properties 4 and 5."""
    _, layer = dense(4, 6)
    whole = routed_layer(layer, Granular(3, 1, balance=0.0))
    whole(torch.randn(8, 4)).square().sum().backward()
    grad = whole.router.scorer.weight.grad
    assert grad is None or not grad.any()
    assert len(whole.experts.down_proj) == 3
    fine = routed_layer(layer, Granular(3, 2, balance=0.0))
    fine(torch.randn(8, 4)).square().sum().backward()
    assert fine.router.scorer.weight.grad.any()


def test_weights_sum_to_k_also_when_slices_part() -> None:
    _, layer = dense(4, 8)
    routed = routed_layer(layer, Granular(3, 4))
    with torch.no_grad():
        routed.router.scorer.weight += 0.3 * torch.randn(12, 4)
    routed(torch.randn(20, 4))
    torch.testing.assert_close(routed.last.weights.sum(1), torch.full((20,), 4.0))


def test_one_expert_for_each_position_leaves_none_out() -> None:
    _, layer = dense(4, 8)
    routed = routed_layer(layer, Granular(3, 4, apart=True))
    with torch.no_grad():
        routed.router.scorer.weight.normal_()
    routed(torch.randn(50, 4))
    assert (routed.last.experts % 4 == torch.arange(4)).all()
    best = routed.last.scores.unflatten(1, (3, 4)).argmax(1)
    assert torch.equal(routed.last.experts // 4, best)


def test_the_balance_is_one_when_even() -> None:
    """Property 8."""
    _, layer = dense(4, 8)
    routed = routed_layer(layer, Granular(2, 2, balance=1.0))
    with torch.no_grad():
        routed.router.scorer.weight.zero_()
    balance = routed.router.losses["load_balance"]
    assert isinstance(balance, LoadBalance) and balance.weight == 1.0
    scores = torch.zeros(4, 4)
    even = torch.tensor([[0, 1], [2, 3], [0, 1], [2, 3]])
    routing = routed.router(torch.randn(4, 4), RoutingContext(experts=even))
    assert torch.equal(routing.scores, scores)
    assert float(routing.losses["load_balance"].detach()) == pytest.approx(1.0)


def test_sizes_are_those_of_the_paper() -> None:
    """A layer of 256-2048-256 has 1,050,880 numbers; six of them 6,305,280 for each copy."""
    one = 256 * 2048 * 2 + 2048 + 256
    assert (one, 6 * one) == (1_050_880, 6_305_280)
    network, layer = dense(8, 16)
    routed = routed_layer(layer, Granular(3, 2))
    experts = sum(p.numel() for p in routed.experts.parameters())
    own = sum(p.numel() for p in network.parameters())
    assert experts == 3 * own + 3 * 8  # each of two slices has a last bias of its own
    with pytest.raises(InputError, match="copies=0"):
        Granular(0)
