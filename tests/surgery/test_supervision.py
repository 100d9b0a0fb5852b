import math

import pytest
import torch

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.routing import MoE, RoutingContext, TopKRouter
from polypath.surgery.supervision import Target, distance, supervise


def layer(experts: int = 4, k: int = 2) -> MoE:
    torch.manual_seed(0)
    return MoE(TopKRouter(6, experts, k), FeedForwardExperts(experts, 6, 5))


def test_distances_are_the_equations() -> None:
    # FactorLLM, properties 4 and 5: a soft label of (1, 0, 1, 0), and router scores.
    q = torch.tensor([[1.0, 0, 1, 0]]).softmax(-1)
    p = torch.tensor([[0.2, -0.1, 0.3, 0.0]]).softmax(-1)
    assert q[0].tolist() == pytest.approx([0.3655, 0.1345, 0.3655, 0.1345], abs=1e-4)
    assert float(distance(p, q)) == pytest.approx(0.05805, abs=1e-5)
    assert float(distance(p, q, "reverse kl")) == pytest.approx(0.05408, abs=1e-5)
    even = torch.full((1, 4), 0.25)
    assert float(distance(even, q)) == pytest.approx(0.1201, abs=1e-4)
    assert float(distance(q, q)) == pytest.approx(0, abs=1e-7)
    # UOE, property 4: gates (0.1, 0.2, 0.3, 0.4) and the fourth expert.
    gates, wanted = torch.tensor([[0.1, 0.2, 0.3, 0.4]]), torch.tensor([[0.0, 0, 0, 1]])
    assert float(distance(gates, wanted, "squared")) == pytest.approx(0.5)
    # Read-ME, property 5: overlaps (2, 4, 1) and router scores.
    overlaps = torch.tensor([[2.0, 4, 1]]).softmax(-1)
    router = torch.tensor([[0.1, 0.4, -0.2]]).softmax(-1)
    assert float(distance(router, overlaps)) == pytest.approx(0.4668, abs=1e-4)
    assert float(distance(router, overlaps, "reverse kl")) == pytest.approx(0.3636, abs=1e-4)


def test_only_the_router_gets_a_gradient_and_targets_get_none() -> None:
    one = layer()
    values = torch.rand(5, 4, requires_grad=True)

    def teach(name, own, rows, routing):
        assert not torch.is_grad_enabled()
        assert name == "it" and rows.shape == (5, 6) and len(routing) == 5
        return Target(values.softmax(-1))

    with supervise({"it": one}, teach) as lessons:
        one(torch.randn(5, 6))
    lessons.loss().backward()
    assert values.grad is None
    assert one.router.scorer.weight.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in one.experts.parameters())


@pytest.mark.parametrize("measure", ["kl", "reverse kl", "squared"])
def test_gradients_reach_experts_that_were_not_chosen(measure) -> None:
    one = layer(6, 1)
    x = torch.randn(3, 6)
    target = torch.rand(3, 6).softmax(-1)
    with supervise({"it": one}, lambda *told: Target(target), measure) as lessons:
        one(x)
    (grad,) = torch.autograd.grad(lessons.loss(), one.last.scores, retain_graph=True)
    assert (grad != 0).all()
    torch.testing.assert_close(grad.sum(-1), torch.zeros(3), atol=1e-6, rtol=0)


def test_places_and_padding_choose_what_counts() -> None:
    one = layer()
    x = torch.randn(4, 6)
    target = torch.full((2, 4), 0.25)
    places = torch.tensor([1, 3])
    mask = torch.tensor([True, True, True, False])
    with supervise({"it": one}, lambda *told: Target(target, places)) as lessons:
        one(x, RoutingContext(mask=mask))
    p = one.last.scores[1].detach().softmax(-1)
    wanted = float((p * (p / 0.25).log()).sum())
    assert lessons.distances["it"].tolist() == pytest.approx([wanted])
    with supervise({"it": one}, lambda *told: None) as lessons:
        one(x)
    with pytest.raises(InputError, match="none had a target"):
        lessons.loss()


def test_the_loss_is_a_mean_over_layers_of_the_last_forward() -> None:
    one, other = layer(), layer()
    x = torch.randn(3, 6)
    even = torch.full((3, 4), 0.25)
    with supervise({"one": one, "other": other}, lambda *told: Target(even)) as lessons:
        one(torch.randn(3, 6)), one(x), other(2 * x)
        means = [float(lessons.distances[name].detach().mean()) for name in ("one", "other")]
        assert float(lessons.loss().detach()) == pytest.approx(sum(means) / 2)
    count = len(lessons.distances)
    one(x)
    assert len(lessons.distances) == count == 2 and not one._forward_hooks


def test_shapes_and_names_are_checked() -> None:
    with pytest.raises(InputError, match="one value for each expert"):
        distance(torch.ones(2, 3), torch.ones(2, 4))
    with pytest.raises(InputError, match="unknown measure"):
        distance(torch.ones(2, 3), torch.ones(2, 3), "cosine")  # type: ignore[arg-type]
    assert math.isfinite(float(distance(torch.tensor([[1.0, 0]]), torch.tensor([[0.0, 1]]))))
