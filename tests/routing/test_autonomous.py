"""Experts that choose for themselves, against one expert at a time."""

import pytest
import torch

from polypath.errors import InputError
from polypath.experts import FactoredExperts, FeedForwardExperts
from polypath.routing import AutonomousRouter, AutonomousScorer, LoadBalance, MoE

X = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_a_thing_goes_to_the_experts_with_the_longest_readings() -> None:
    torch.manual_seed(0)
    experts = FactoredExperts(5, 6, 4, rank=3).double()
    routing = AutonomousRouter(experts, 2)(X)
    lengths = torch.stack([(X @ w.T).square().sum(1).sqrt() for w in experts.gate_in], dim=1)
    torch.testing.assert_close(routing.scores, lengths)
    best = lengths.topk(2, dim=1)
    assert torch.equal(routing.experts, best.indices)
    weights = lengths.softmax(1).gather(1, best.indices)
    torch.testing.assert_close(routing.weights, weights)


def test_the_experts_parameters_are_there_once_and_learn_from_the_choice() -> None:
    torch.manual_seed(0)
    experts = FactoredExperts(5, 6, 4)
    moe = MoE(AutonomousRouter(experts, 2, [LoadBalance(1.0)]), experts)
    assert set(moe.state_dict()) == {
        f"experts.{name}" for name in ("gate_in", "gate_out", "up_proj", "down_proj")
    }
    moe(X.float())
    moe.last.losses["load_balance"].backward()
    assert experts.gate_in.grad.abs().sum() > 0 and experts.gate_out.grad is None


def test_experts_without_readings_are_refused() -> None:
    with pytest.raises(InputError, match="FeedForwardExperts has no low-rank readings"):
        AutonomousScorer(FeedForwardExperts(5, 6, 4))
