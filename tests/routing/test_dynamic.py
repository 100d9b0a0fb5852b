"""Counts that vary, or do not: weights, noise, gradients and what a fixed count is equal to."""

import math

import pytest
import torch

from polypath.diagnosis import activity, follows_entropy
from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.routing import DynamicRouter, MoE, TopKRouter

X = torch.randn(30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def router(*values: object, num_experts: int = 8, seed: int = 0, **more: object) -> DynamicRouter:
    torch.manual_seed(seed)
    made = DynamicRouter(6, num_experts, *values, **more).double()
    with torch.no_grad():
        made.scorer.own.weight.normal_(std=0.4)
    return made


@pytest.mark.parametrize("tau", [0.25, 0.5, 0.75])
def test_a_percentile_without_noise_is_top_k(tau: float) -> None:
    ours = router("percentile", tau, renormalise="logits", noise=0.0)
    plain = TopKRouter(6, 8, {0.25: 6, 0.5: 4, 0.75: 2}[tau]).double()
    plain.scorer.weight = ours.scorer.own.weight
    found, expected = ours(X), plain(X)
    assert torch.equal(found.experts, expected.experts)
    torch.testing.assert_close(found.weights, expected.weights)


@pytest.mark.parametrize("renormalise", ["gates", "logits", "proportional", "none"])
def test_weights_of_the_chosen(renormalise: str) -> None:
    routing = router("mass", 0.7, renormalise=renormalise, noise=0.0)(X)
    logits = X @ router().scorer.own.weight.T
    gates = (logits / 0.5).softmax(-1)
    torch.testing.assert_close(routing.probabilities, gates)
    for row, (experts, weights) in enumerate(zip(routing.experts, routing.weights, strict=True)):
        own = experts[experts >= 0]
        g = gates[row, own]
        expected = {
            "gates": g.softmax(0),
            "logits": logits[row, own].softmax(0),
            "proportional": g / g.sum(),
            "none": g,
        }
        torch.testing.assert_close(weights[experts >= 0], expected[renormalise])
        assert not weights[experts < 0].any()


def test_published_weights_lie_close_to_each_other() -> None:
    weights = router("percentile", 0.5, noise=0.0)(X).weights.detach()
    assert float((weights.max(1).values / weights.min(1).values).max()) <= math.e
    torch.testing.assert_close(weights.sum(1), torch.ones(30).double())


def test_noise_in_training_changes_who_and_not_how_many() -> None:
    made = router(noise=0.1)
    clean = made.eval()(X)
    assert torch.equal(clean.experts, made(X).experts)
    torch.manual_seed(0)
    noisy = made.train()(X)
    assert (noisy.experts.sort(1).values != clean.experts.sort(1).values).any()
    assert noisy.count().unique().tolist() == clean.count().unique().tolist() == [4]
    assert (noisy.probabilities >= 0).all()


def test_the_count_follows_entropy_unless_it_is_a_percentile() -> None:
    varied = router("mass", 0.5, noise=0.0)(X)
    assert follows_entropy(varied) > 0.5
    fixed = router("percentile", 0.5, noise=0.0)(X)
    assert math.isnan(follows_entropy(fixed))
    assert activity(fixed).tolist() == [0, 0, 0, 0, 30, 0, 0, 0, 0]
    assert activity(varied).sum() == 30 and (activity(varied) > 0).sum() > 1


def test_experts_that_are_not_chosen_get_no_gradient() -> None:
    torch.manual_seed(0)
    moe = MoE(DynamicRouter(6, 8, noise=0.0), FeedForwardExperts(8, 6, 5)).double()
    moe(X[:1]).sum().backward()
    served = moe.last.experts[0]
    reached = moe.experts.down_proj.grad.flatten(1).any(1)
    assert set(reached.nonzero()[:, 0].tolist()) == set(served.tolist())
    assert moe.router.scorer.own.weight.grad.any(1).all(), "through the first softmax"


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="temperature=0"):
        router(temperature=0.0)
    with pytest.raises(InputError, match="unknown renormalise 'softmax'"):
        router(renormalise="softmax")
