"""The routed layer, and what a model of several gives."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.routing import (
    Entropy,
    LoadBalance,
    MoE,
    RouterZ,
    TopKRouter,
    given,
    losses,
    routed_layers,
)
from references import assert_same, leaves_of, mixture


def layer(num_experts: int = 4, k: int = 2, dim: int = 3, shared: bool = False, **options) -> MoE:
    router = TopKRouter(dim, num_experts, k, **options)
    bank = FeedForwardExperts(num_experts, dim, 5, engine="reference")
    return MoE(router, bank, nn.Linear(dim, dim) if shared else None)


@drawn(st.integers(0, 6), st.integers(1, 5), st.integers(1, 4), st.booleans(), st.data())
def test_layer_is_the_weighted_sum_of_its_experts(
    things: int, num_experts: int, dim: int, shared: bool, data
) -> None:
    k = data.draw(st.integers(1, num_experts))
    moe = layer(num_experts, k, dim, shared).double()
    x = torch.randn(things, dim, dtype=torch.float64, requires_grad=True)

    def expert(e: int):
        gate, up = moe.experts.gate_up_proj[e].chunk(2)
        return lambda row: moe.experts.down_proj[e] @ (F.silu(gate @ row) * (up @ row))

    y = moe(x)
    bank = [expert(e) for e in range(num_experts)]
    slow = mixture(x, moe.last.experts, moe.last.weights, bank)
    if shared:
        slow = slow + x @ moe.shared.weight.T + moe.shared.bias
    assert_same(y, slow, leaves_of(moe, x))


@pytest.mark.parametrize("shape", [(3,), (0, 3), (6, 3), (2, 3, 3), (1, 2, 3, 3), (2, 0, 3)])
def test_any_layout_is_routed_row_by_row(shape: tuple[int, ...]) -> None:
    moe, x = layer(shared=True), torch.randn(shape)
    y = moe(x)
    assert y.shape == x.shape
    torch.testing.assert_close(y.reshape(-1, 3), moe(x.reshape(-1, 3)))


def test_layout_reaches_the_router() -> None:
    moe = layer(losses=[LoadBalance(1.0, over="sequence")])
    x = torch.randn(2, 3, 3)
    moe(x)
    of_rows = []
    for row in x:
        moe(row)
        of_rows.append(losses(moe)["sequence_balance"])
    moe(x)
    torch.testing.assert_close(losses(moe)["sequence_balance"], sum(of_rows) / 2)


def test_surrounding_context_is_used_and_has_to_fit() -> None:
    moe, x = layer(), torch.randn(2, 3, 3)
    with given(candidates=torch.tensor([False, True, True, False])):
        moe(x)
        assert moe.last.load()[[0, 3]].eq(0).all()
    with given(mask=torch.ones(5, dtype=torch.bool)), pytest.raises(InputError, match=r"\(5,\)"):
        moe(x)
    with given(shape=(4, 2)), pytest.raises(InputError, match="8 things; the router was given 6"):
        moe(x)


def test_losses_are_means_over_the_layers_that_have_them() -> None:
    model = nn.Sequential(
        layer(losses=[LoadBalance(1.0), RouterZ(0.5)]), layer(), layer(losses=[LoadBalance(3.0)])
    )
    assert losses(model) == {}
    model(torch.randn(6, 3))
    first, _, last = (moe.last.losses for moe in model)
    found = losses(model)
    assert found.keys() == {"load_balance", "router_z"}
    torch.testing.assert_close(
        found["load_balance"], (first["load_balance"] + last["load_balance"]) / 2
    )
    torch.testing.assert_close(found["router_z"], first["router_z"])


def test_losses_without_gradients_hold_no_history() -> None:
    moe = layer(losses=[Entropy()])
    with torch.no_grad():
        moe(torch.randn(6, 3))
    assert not losses(moe)["entropy"].requires_grad


def test_routed_layers_are_named_in_the_order_of_the_model() -> None:
    model = nn.ModuleDict({"b": nn.Sequential(nn.ReLU(), layer()), "a": layer()})
    assert list(routed_layers(model)) == ["b.1", "a"]
    assert list(routed_layers(model["a"])) == [""]
