import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polypath.errors import InputError
from polypath.routing import (
    Candidates,
    LinearScorer,
    OnlyExperts,
    Router,
    RoutingContext,
    SoftmaxGate,
    TopK,
)
from polypath.routing.candidates import drawn


class Zeroed(Candidates):
    """The same experts, but nothing is made up for the probabilities of the others."""

    renormalise = False

    def __init__(self, allowed: Tensor) -> None:
        super().__init__()
        self.allowed = allowed

    def forward(self, context: RoutingContext) -> Tensor:
        return self.allowed


def router(candidates: Candidates | None, k: int = 2) -> Router:
    torch.manual_seed(0)
    return Router(LinearScorer(4, 6), TopK(k), SoftmaxGate(), candidates=candidates)


X = torch.randn(9, 4, generator=torch.Generator().manual_seed(1))
KEPT = [1, 3, 4]


def test_only_experts_is_the_narrower_router() -> None:
    wide, narrow = router(OnlyExperts(6, KEPT)), router(None)
    narrow.scorer.weight = torch.nn.Parameter(narrow.scorer.weight[KEPT])
    ours, theirs = wide(X), narrow(X)
    assert torch.equal(ours.experts, torch.tensor(KEPT)[theirs.experts])
    torch.testing.assert_close(ours.weights, theirs.weights)
    torch.testing.assert_close(ours.probabilities[:, KEPT], theirs.probabilities)
    assert not ours.probabilities[:, [0, 2, 5]].any()


def test_what_is_not_renormalised_keeps_the_probabilities_of_all() -> None:
    allowed = torch.isin(torch.arange(6), torch.tensor(KEPT))
    ours, everyone = router(Zeroed(allowed))(X), router(None)(X)
    assert torch.isin(ours.experts, torch.tensor(KEPT)).all()
    torch.testing.assert_close(ours.weights, everyone.probabilities.gather(1, ours.experts))
    assert (ours.weights.sum(-1) < 1).all()


def test_a_layers_own_limit_and_the_contexts_hold_together() -> None:
    context = RoutingContext(candidates=torch.tensor([True, True, False, True, False, False]))
    routing = router(OnlyExperts(6, KEPT))(X, context)
    assert routing.load()[[0, 2, 4, 5]].sum() == 0
    assert routing.load()[[1, 3]].eq(9).all()


def test_fewer_candidates_than_k_leave_slots_empty() -> None:
    routing = router(OnlyExperts(6, [2]), k=2)(X)
    assert routing.experts.tolist() == [[2, -1]] * 9
    torch.testing.assert_close(routing.weights, torch.tensor([[1.0, 0.0]] * 9))


@pytest.mark.parametrize("experts", [[], [6], [-1, 2]])
def test_experts_that_do_not_exist_are_refused(experts: list[int]) -> None:
    with pytest.raises(InputError, match="of experts 0 to 5"):
        OnlyExperts(6, experts)


@given(st.integers(1, 9), st.data(), st.integers(0, 2**31), st.integers(0, 2**31))
def test_draws_have_the_count_and_repeat(size: int, data: st.DataObject, seed: int, step: int):
    count = data.draw(st.integers(0, size))
    allowed = drawn(size, count, seed, step)
    assert allowed.sum() == count
    assert torch.equal(allowed, drawn(size, count, seed, step))


def test_draws_take_every_expert_alike_and_differ_between_neighbouring_seeds() -> None:
    draws = torch.stack([drawn(8, 2, 0, step) for step in range(4000)]).float()
    # Each expert is drawn 1000 times; five standard deviations are 137.
    assert (draws.sum(0) - 1000).abs().max() < 137
    others = torch.stack([drawn(8, 2, 1, step) for step in range(4000)]).float()
    # Two independent pairs of eight share 2 · 2 / 8 experts on average.
    assert abs((draws * others).sum(-1).mean() - 0.5) < 0.05
