"""Scorers against their equations, and the noise of the noisy one."""

import pytest
import torch
from hypothesis import given

from draws import Problem, problems
from polypath.routing import (
    CosineScorer,
    LinearScorer,
    NoisyLinearScorer,
    RoutingContext,
)
from references import assert_same, cosine_scores, leaves_of, linear_scores, noisy_scores

NOTHING = RoutingContext()


@given(problems(masks=False))
def test_linear_scores_follow_the_equation(problem: Problem) -> None:
    for bias in (False, True):
        scorer = LinearScorer(problem.dim, problem.num_experts, bias).double()
        if bias:
            torch.nn.init.normal_(scorer.bias)
        scores = scorer(problem.x, NOTHING)
        slow = linear_scores(problem.x, scorer.weight, scorer.bias)
        assert_same(scores, slow, leaves_of(scorer, problem.x))


@given(problems(masks=False))
def test_cosine_scores_follow_the_equation(problem: Problem) -> None:
    scorer = CosineScorer(problem.dim, problem.num_experts, temperature=0.3).double()
    slow = cosine_scores(
        problem.x, scorer.projection, scorer.weight, scorer.log_temperature.exp().squeeze()
    )
    assert_same(scorer(problem.x, NOTHING), slow, leaves_of(scorer, problem.x), 1e-7)


def test_cosine_scores_ignore_length_and_stay_below_the_inverse_temperature() -> None:
    scorer = CosineScorer(5, 8, temperature=0.07).double()
    x = torch.randn(100, 5, dtype=torch.float64)
    torch.testing.assert_close(scorer(3 * x, NOTHING), scorer(x, NOTHING))
    assert scorer(x, NOTHING).abs().max() <= 1 / 0.07 + 1e-9
    assert scorer.projection.shape == (4, 5), "X-MoE projects to half as many as experts"


def noisy(dim: int, num_experts: int) -> NoisyLinearScorer:
    scorer = NoisyLinearScorer(dim, num_experts).double()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter)
    return scorer


@given(problems(masks=False))
def test_noisy_scores_follow_the_equation(problem: Problem) -> None:
    scorer = noisy(problem.dim, problem.num_experts)
    scores = scorer(problem.x, RoutingContext(generator=torch.Generator().manual_seed(3)))
    epsilon = torch.empty_like(scores).normal_(generator=torch.Generator().manual_seed(3))
    slow = noisy_scores(problem.x, scorer.weight, scorer.noise, epsilon)
    assert_same(scores, slow, leaves_of(scorer, problem.x))


def test_noise_is_gaussian_with_a_softplus_of_its_own_scores_as_spread() -> None:
    scorer, row = noisy(3, 2), torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    noise = scorer(row.expand(20_000, 3), NOTHING) - scorer.eval()(row, NOTHING)
    spread = torch.nn.functional.softplus(row @ scorer.noise.T)[0]
    # Standard errors at n = 20,000: 0.7 % of the spread for the mean, 0.5 % for the deviation.
    assert (noise.mean(0).abs() < 0.04 * spread).all()
    torch.testing.assert_close(noise.std(0), spread, rtol=0.03, atol=0)
    kurtosis = (noise / spread).pow(4).mean(0)
    torch.testing.assert_close(kurtosis, torch.full_like(spread, 3.0), rtol=0.1, atol=0)


def test_noise_comes_from_the_generator_and_stops_in_eval() -> None:
    scorer, x = noisy(3, 4), torch.randn(5, 3, dtype=torch.float64)

    def draw(seed: int) -> torch.Tensor:
        return scorer(x, RoutingContext(generator=torch.Generator().manual_seed(seed)))

    before = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), before), "the global generator was used"
    scorer.eval()
    assert torch.equal(scorer(x, NOTHING), draw(1))


def test_noisy_scorer_starts_at_zero() -> None:
    assert all(parameter.eq(0).all() for parameter in NoisyLinearScorer(3, 4).parameters())


@pytest.mark.parametrize("kind", [LinearScorer, NoisyLinearScorer, CosineScorer])
def test_half_precision_is_scored_in_single(kind: type) -> None:
    scorer = kind(6, 4).eval()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter)
    scorer.bfloat16()
    x = torch.randn(5, 6).bfloat16()
    scores = scorer(x, NOTHING)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, scorer.float()(x.float(), NOTHING))
