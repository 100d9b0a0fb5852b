import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.experts import ExpertList, FeedForwardExperts
from polypath.experts.merged import MergedExperts
from polypath.routing import MoE, Routing, TopKRouter


@given(
    things=st.integers(0, 6),
    experts=st.integers(1, 7),
    stored=st.integers(1, 7),
    k=st.integers(1, 4),
    seed=st.integers(0, 20),
)
def test_it_is_the_sum_over_the_original_choices(
    things: int, experts: int, stored: int, k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(stored, (experts,), generator=generator)
    chosen = torch.randint(-1, experts, (things, k), generator=generator)
    weights = torch.rand(things, k, generator=generator).masked_fill(chosen < 0, 0.0)
    bank = FeedForwardExperts(stored, 4, 3)
    rows = torch.randn(things, 4, generator=generator)
    routing = Routing(torch.zeros(things, experts), chosen, weights)
    merged = MergedExperts(bank, groups, stored)
    wanted = torch.zeros(things, 4)
    for slot in range(k):
        own = groups[chosen[:, slot].clamp_min(0)].masked_fill(chosen[:, slot] < 0, -1)
        one = Routing(torch.zeros(things, stored), own[:, None], weights[:, slot, None])
        wanted += bank(rows, one)
    torch.testing.assert_close(merged(rows, routing), wanted, rtol=1e-4, atol=1e-5)
    told = merged.routing(routing)
    for row, (ids, shares) in enumerate(zip(told.experts, told.weights, strict=True)):
        filled = ids[ids >= 0].tolist()
        assert len(set(filled)) == len(filled)
        assert float(shares.sum()) == pytest.approx(float(weights[row].sum()), abs=1e-5)


def test_an_expert_that_is_chosen_twice_runs_once() -> None:
    seen: list[int] = []

    class Counting(torch.nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(len(rows))
            return rows

    merged = MergedExperts(ExpertList([Counting(), Counting()]), [0, 0, 1], 2)
    routing = Routing(torch.zeros(2, 3), torch.tensor([[0, 1], [1, 2]]), torch.ones(2, 2))
    y = merged(torch.ones(2, 4), routing)
    assert seen == [2, 1] and (y == 2).all()


def test_gradients_reach_the_weights_of_all_choices() -> None:
    layer = MoE(TopKRouter(4, 6, 3), MergedExperts(FeedForwardExperts(2, 4, 3), [0, 1] * 3, 2))
    layer(torch.randn(8, 4)).square().sum().backward()
    grad = layer.router.scorer.weight.grad
    assert (grad.abs().sum(1) > 0).sum() >= 3


def test_maps_that_misfit_are_refused() -> None:
    bank = FeedForwardExperts(2, 4, 3)
    for groups in ([], [0, 2], [-1, 0]):
        with pytest.raises(InputError, match="for 2 experts"):
            MergedExperts(bank, groups, 2)
    with pytest.raises(InputError, match="a routing over 3 experts for a map of 4"):
        merged = MergedExperts(bank, [0, 1, 0, 1], 2)
        merged(
            torch.ones(1, 4), Routing(torch.zeros(1, 3), torch.zeros(1, 1).long(), torch.ones(1, 1))
        )
