"""Losses on a layer's parameters: shares of a batch, evaluation, layers they do not fit."""

import pytest
import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.routing import (
    HashRouter,
    LayerLoss,
    MoE,
    RoutingContext,
    TopKRouter,
    given,
    losses,
    whole_batch,
)


class Pull(LayerLoss):
    """Rows of the router towards nought, each times the size of its expert."""

    name = "pull"

    def check(self, router: nn.Module, experts: nn.Module) -> None:
        if not hasattr(router.scorer, "weight"):
            raise InputError("pull: a HashRouter has no row for each expert")

    def penalty(self, router: nn.Module, experts: nn.Module, context: RoutingContext) -> Tensor:
        sizes = experts.down_proj.flatten(1).norm(dim=-1)
        return (router.scorer.weight.norm(dim=-1) * sizes).sum()


def layer(weight: float = 0.5) -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(3, 4, 2), FeedForwardExperts(4, 3, 5), losses=[Pull(weight)]).double()


X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def gradients(moe: MoE) -> dict[str, Tensor]:
    return {name: p.grad for name, p in moe.named_parameters() if p.grad is not None}


def test_value_is_the_weighted_penalty_whatever_the_things() -> None:
    moe = layer()
    for things in (X, X[:1], X[:0]):
        moe(things)
        expected = 0.5 * moe.losses["pull"].penalty(moe.router, moe.experts, RoutingContext())
        torch.testing.assert_close(losses(moe)["pull"], expected)


def test_parts_of_a_batch_add_up() -> None:
    whole, parted = layer(), layer()
    whole(X)
    losses(whole)["pull"].backward()
    parts, total = [X[:1], X[1:6], X[:0]], torch.zeros((), dtype=torch.float64)
    with whole_batch(parted, [lambda part=part: parted(part) for part in parts]):
        for part in parts:
            parted(part)
            share = losses(parted)["pull"]
            share.backward()
            total += share.detach()
    torch.testing.assert_close(total, losses(whole)["pull"].detach())
    expected = gradients(whole)
    assert expected.keys() == gradients(parted).keys()
    for name, gradient in gradients(parted).items():
        torch.testing.assert_close(gradient, expected[name])


def test_padding_counts_for_nothing_in_shares() -> None:
    moe = layer()
    with given(mask=torch.tensor([True] * 2 + [False] * 4)):
        moe(X)
    expected = 0.5 * moe.losses["pull"].penalty(moe.router, moe.experts, RoutingContext())
    torch.testing.assert_close(losses(moe)["pull"], expected)


def test_evaluation_and_the_state_know_nothing_of_it() -> None:
    with_loss = layer().eval()
    without = MoE(TopKRouter(3, 4, 2), FeedForwardExperts(4, 3, 5)).double().eval()
    assert with_loss.state_dict().keys() == without.state_dict().keys()
    without.load_state_dict(with_loss.state_dict())
    assert torch.equal(with_loss(X), without(X))
    assert losses(with_loss) == {}


def test_a_layer_that_it_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match="pull: a HashRouter has no row"):
        MoE(HashRouter(4, 2), FeedForwardExperts(4, 3, 5), losses=[Pull(1.0)])
