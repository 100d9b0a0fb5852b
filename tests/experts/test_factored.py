"""Experts with a first projection of low rank, against plain ones with the product."""

import pytest
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.experts import FactoredExperts, FeedForwardExperts, experts_of
from polypath.routing import MoE, TopKRouter


@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
def test_they_are_plain_experts_with_the_product(kind: str) -> None:
    torch.manual_seed(0)
    factored = FactoredExperts(4, 6, 5, kind, rank=2).double()
    plain = FeedForwardExperts(4, 6, 5, kind).double()
    inner = plain.gate_up_proj if kind == "swiglu" else plain.up_proj
    x = torch.randn(9, 6).double().requires_grad_()
    routing = TopKRouter(6, 4, 2).double()(x.detach())
    with torch.no_grad():
        inner[:, :5] = factored.gate_out @ factored.gate_in
        if kind == "swiglu":
            inner[:, 5:] = factored.up_proj
        plain.down_proj.copy_(factored.down_proj)
    ours, theirs = factored(x, routing), plain(x, routing)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)

    def gradient(y: Tensor) -> Tensor:
        return torch.autograd.grad((y * grad).sum(), x, retain_graph=True)[0]

    torch.testing.assert_close(gradient(ours), gradient(theirs))


def test_the_usual_rank_keeps_the_number_of_parameters() -> None:
    with torch.device("meta"):
        factored, plain = FactoredExperts(2, 1536, 768), FeedForwardExperts(2, 1536, 768)
    assert factored.gate_in.shape == (2, 512, 1536)
    assert sum(p.numel() for p in factored.parameters()) == sum(
        p.numel() for p in plain.parameters()
    )


def test_views_reach_every_factor() -> None:
    moe = MoE(TopKRouter(6, 4, 2), FactoredExperts(4, 6, 5))
    views = experts_of(moe)
    assert not views.coverage().missed
    assert {view.projection for view in views} == {"gate_in", "gate_out", "up", "down"}


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="unknown feed-forward kind"):
        FactoredExperts(4, 6, 5, "tanh")
    with pytest.raises(InputError, match="rank=0"):
        FactoredExperts(4, 6, 5, rank=0)
