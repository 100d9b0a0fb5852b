"""Gates against their equations, over empty slots and experts that may not be chosen."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from draws import Problem, problems, scores_of
from polypath.errors import InputError
from polypath.routing import HardGate, SigmoidGate, SoftmaxGate, UniformGate
from references import (
    assert_same,
    rows,
    sigmoid,
    sigmoid_weights,
    softmax,
    softmax_weights,
    uniform_weights,
)


def choices(problem: Problem, scores: Tensor, hole: float = 0.2) -> Tensor:
    """(T, k) of distinct experts that may be chosen, some slots empty."""
    order = torch.rand(scores.shape).masked_fill(scores == -torch.inf, 2.0).argsort(-1)
    experts = order[:, : problem.k]
    closed = scores.detach().gather(1, experts) == -torch.inf
    return experts.masked_fill(closed | (torch.rand(experts.shape) < hole), -1)


@pytest.mark.parametrize("over", ["all", "chosen"])
@given(problem=problems(), ties=st.booleans())
def test_softmax_gate_follows_the_equation(problem: Problem, ties: bool, over: str) -> None:
    scores = scores_of(problem, ties, closed_rows=False)
    experts, gate = choices(problem, scores), SoftmaxGate(over, scale=2.5)
    slow = rows([softmax(list(row)) for row in scores], problem.num_experts)
    probabilities = gate.probabilities(scores)
    assert_same(probabilities, slow, [scores])
    weights = [softmax_weights(s, e, over) for s, e in zip(scores, experts.tolist(), strict=True)]
    assert_same(
        gate.weights(scores, probabilities, experts), 2.5 * rows(weights, problem.k), [scores]
    )


@pytest.mark.parametrize("normalise", [True, False])
@given(problem=problems(), ties=st.booleans())
def test_sigmoid_gate_follows_the_equation(problem: Problem, ties: bool, normalise: bool) -> None:
    scores = scores_of(problem, ties, closed_rows=False)
    experts, gate = choices(problem, scores), SigmoidGate(normalise, scale=2.5)
    probabilities = gate.probabilities(scores)
    slow = rows([[sigmoid(s) for s in row] for row in scores], problem.num_experts)
    assert_same(probabilities, slow, [scores])
    weights = [
        sigmoid_weights(s, e, normalise) for s, e in zip(scores, experts.tolist(), strict=True)
    ]
    assert_same(
        gate.weights(scores, probabilities, experts), 2.5 * rows(weights, problem.k), [scores]
    )


@given(problems())
def test_uniform_gate_shares_equally_and_has_no_probabilities(problem: Problem) -> None:
    scores = scores_of(problem)
    experts = choices(problem, scores)
    weights = UniformGate().weights(scores, None, experts)
    assert weights.tolist() == [uniform_weights(row) for row in experts.tolist()]
    assert UniformGate().probabilities(scores) is None


@given(problems())
def test_softmax_over_the_chosen_renormalises_softmax_over_all(problem: Problem) -> None:
    scores = scores_of(problem, closed_rows=False)
    experts = choices(problem, scores)
    probabilities = scores.softmax(-1)
    everything = SoftmaxGate("all").weights(scores, probabilities, experts)
    chosen = SoftmaxGate("chosen").weights(scores, probabilities, experts)
    total = everything.sum(-1, keepdim=True)
    assert_same(chosen, everything / total.where(total > 0, 1), [scores])


@pytest.mark.parametrize("over", ["all", "chosen"])
def test_weights_of_a_thing_with_nothing_to_choose_are_zero(over: str) -> None:
    scores = torch.full((2, 3), -torch.inf)
    for experts in ([[-1, -1], [-1, -1]], [[0, 1], [2, -1]]):
        weights = SoftmaxGate(over).weights(scores, torch.zeros(2, 3), torch.tensor(experts))
        assert torch.equal(weights, torch.zeros(2, 2))


def test_softmax_over_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="'chose'; did you mean 'chosen'"):
        SoftmaxGate("chose")


def test_a_hard_gate_weighs_all_alike_and_passes_no_gradient() -> None:
    scores = torch.randn(4, 5, requires_grad=True)
    experts = torch.tensor([[0, 3], [1, -1], [2, 4], [-1, -1]])
    gate = HardGate(2.5)
    weights = gate.weights(scores, gate.probabilities(scores), experts)
    assert weights.tolist() == [[2.5, 2.5], [2.5, 0], [2.5, 2.5], [0, 0]]
    assert not weights.requires_grad
    torch.testing.assert_close(gate.probabilities(scores), scores.softmax(-1))


def test_a_straight_through_gate_has_the_gradient_of_the_probabilities() -> None:
    scores = torch.randn(4, 5, requires_grad=True, dtype=torch.float64)
    experts = torch.tensor([[0, 3], [1, -1], [2, 4], [-1, -1]])
    gate = HardGate(2.5, through=True)
    weights = gate.weights(scores, gate.probabilities(scores), experts)
    plain = HardGate(2.5).weights(scores, None, experts)
    torch.testing.assert_close(weights, plain)
    pull = torch.randn(4, 2, dtype=torch.float64)
    (grad,) = torch.autograd.grad((weights * pull).sum(), scores)
    soft = scores.softmax(-1).gather(1, experts.clamp_min(0)).masked_fill(experts < 0, 0)
    (wanted,) = torch.autograd.grad((soft * pull).sum(), scores)
    torch.testing.assert_close(grad, wanted)
