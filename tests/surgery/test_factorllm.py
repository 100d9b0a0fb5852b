from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hosts import tiny_model
from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.language.families import decoder_of
from polypath.routing import HardGate, MoE, Routing, TopKRouter, routed_layers
from polypath.surgery.convert import convert, dense_layers
from polypath.surgery.factorllm import (
    FactorLLM,
    PriorApproximate,
    gate_balance,
    prior_label,
)
from polypath.surgery.slices import outputs
from polypath.surgery.supervision import distance, supervise
from polypath.surgery.tuning import teachers_of

# The worked example of the specification: a ReLU layer of four units, one for each expert.
INNER = torch.tensor([[1.0, 0], [0, 1], [1, 1], [1, -1]])
OUTER = torch.tensor([[1.0, 0, 1, 0], [0, 2, 0, -1]])
X = torch.tensor([[2.0, 1.0]])


def worked() -> tuple[torch.Tensor, torch.Tensor]:
    whole = (INNER[None], None, OUTER[None], None)
    parts = (INNER[:, None], None, OUTER.T[:, :, None], None)
    return outputs(parts, "relu", X), outputs(whole, "relu", X)[:, 0]


def test_the_worked_example() -> None:
    every, teacher = worked()
    assert every[0].tolist() == [[2, 0], [0, 2], [3, 0], [0, -1]] and teacher.tolist() == [[5, 1]]
    label = prior_label(every, teacher, 2)
    assert label.tolist() == [[1, 0, 1, 0]]
    p = torch.tensor([[0.2, -0.1, 0.3, 0.0]]).softmax(-1)
    assert float(distance(p, label.softmax(-1))) == pytest.approx(0.05805, abs=1e-5)
    scaled, plain = 2 * every[0, [0, 2]].sum(0), every[0, [0, 2]].sum(0)
    assert float((scaled - teacher[0]).square().mean()) == pytest.approx(13.0)
    assert float((plain - teacher[0]).square().mean()) == pytest.approx(0.5)
    assert prior_label(every, teacher, 2, "subset").tolist() == [[1, 0, 1, 0]]


@given(
    count=st.integers(1, 5), things=st.integers(1, 4), dim=st.integers(1, 3), seed=st.integers(0, 9)
)
def test_labels_are_the_best_by_brute_force(count: int, things: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    every = torch.randn(things, count, dim, generator=generator, dtype=torch.float64)
    teacher = torch.randn(things, dim, generator=generator, dtype=torch.float64)
    for k in range(1, count + 1):
        subset = prior_label(every, teacher, k, "subset")
        single = prior_label(every, teacher, k)
        assert (subset.sum(1) == k).all() and (single.sum(1) == k).all()
        for t in range(things):
            best = min(
                combinations(range(count), k),
                key=lambda own: float((every[t, list(own)].sum(0) - teacher[t]).square().sum()),
            )
            assert subset[t].nonzero()[:, 0].tolist() == list(best)
            far = (every[t] - teacher[t] / (count // k)).square().sum(1)
            assert set(single[t].nonzero()[:, 0].tolist()) == set(far.argsort()[:k].tolist())


def test_ties_go_to_lower_numbers() -> None:
    every = torch.zeros(1, 4, 2)  # a ReLU that is nowhere active
    assert prior_label(every, torch.ones(1, 2), 2).tolist() == [[1, 1, 0, 0]]
    with pytest.raises(InputError, match="unknown label"):
        prior_label(every, torch.ones(1, 2), 2, "all")  # type: ignore[arg-type]


def test_soft_targets_have_the_published_values() -> None:
    two = torch.tensor([1.0, 0, 1, 0]).softmax(-1)
    one = torch.tensor([1.0, 0, 0, 0]).softmax(-1)
    assert [round(float(v), 4) for v in (two[0], two[1], one[0], one[1])] == [
        0.3655,
        0.1345,
        0.4754,
        0.1749,
    ]


def test_the_gate_balance_is_the_equation() -> None:
    def of(scores: list[float]) -> float:
        z = torch.tensor([scores])
        return float(gate_balance(Routing(z, z.topk(2).indices, torch.ones(1, 2))))

    assert of([1, 0.5, 0, -1]) == pytest.approx(0.19037, abs=1e-5)
    assert of([0.0] * 4) == pytest.approx(0.125)
    z = torch.tensor([[1, 0.5, 0, -1], [9.0, 0, 0, 0]])
    masked = Routing(z, z.topk(2).indices, torch.ones(2, 2), mask=torch.tensor([True, False]))
    assert float(gate_balance(masked)) == pytest.approx(0.19037, abs=1e-5)


def test_who_gets_a_gradient(ids: torch.Tensor) -> None:
    """Property 3: none to routers from the task; from the loss to routers, and to nothing else."""
    model = tiny_model("Llama")
    teachers, kind = teachers_of(model)
    convert(model, FactorLLM(4, 2))
    layers = routed_layers(model)
    known = {f"model.layers.{i}.mlp": weights for i, weights in teachers.items()}
    assert set(known) == set(layers)
    with supervise(layers, PriorApproximate(known, kind, 2)) as lessons:
        task = model(input_ids=ids, labels=ids).loss
    task.backward(retain_graph=True)
    for layer in layers.values():
        assert all(p.grad is None or not p.grad.any() for p in layer.router.parameters())
        assert layer.experts.down_proj.grad.abs().sum() > 0
    model.zero_grad()
    layer = next(iter(layers.values()))
    name = next(iter(layers))
    lessons.distances[name].mean().backward()
    assert layer.router.scorer.weight.grad.any() and layer.router.scorer.bias.grad.any()
    assert all(p.grad is None for p in layer.experts.parameters())


def test_a_straight_through_gate_passes_the_gradient_of_the_softmax() -> None:
    torch.manual_seed(0)
    layer = MoE(TopKRouter(4, 3, 1, gate="hard", scale=3.0), FeedForwardExperts(3, 4, 5))
    x = torch.randn(6, 4)
    layer(x).sum().backward()
    assert layer.router.scorer.weight.grad is None or not layer.router.scorer.weight.grad.any()
    before = layer(x)
    layer.router.gate = HardGate(3.0, through=True)
    torch.testing.assert_close(layer(x), before)
    layer(x).sum().backward()
    assert layer.router.scorer.weight.grad.any()


def test_a_token_meets_as_much_as_is_said() -> None:
    """Property 7, by counting what dispatch multiplies."""
    model = tiny_model("Llama")
    width, dim = 24, 16
    convert(model, FactorLLM(4, 2))
    layer: Any = decoder_of(model).routed()[0]
    rows = torch.randn(10, dim)
    routing = layer.router(rows)
    met = 0
    for expert in range(4):
        served = int((routing.experts == expert).sum())
        own = [part[expert].numel() for part in layer.experts.weights() if part is not None]
        met += served * sum(own)
    assert met / len(rows) == 2 * 3 * dim * width / 4
    assert layer.router.scorer.weight.numel() == 4 * dim


def test_the_published_work_of_tinyllama() -> None:
    dim, width, layers = 2048, 5632, 22
    whole = 3 * dim * width
    assert whole == 34_603_008
    assert round(2 * whole * layers / 1e9, 4) == 1.5225
    assert round(2 * whole * layers / 2 / 1e9, 4) == 0.7613
    router = dim * 4
    assert round(2 * (whole / 4 + router) * layers / 1e9, 4) == 0.3810


def test_permutations_change_experts_and_not_the_sum() -> None:
    dense = dense_layers(decoder_of(tiny_model("Llama")))[0]
    found = [FactorLLM(4, 2, split).cut(0, dense).sets for split in ("contiguous", "random")]
    assert found[0].tolist() != found[1].tolist()
    assert all(sorted(sets.flatten().tolist()) == list(range(24)) for sets in found)
    for wrong in ({"k": 0}, {"k": 5}, {"split": "halves"}):
        with pytest.raises(InputError):
            FactorLLM(**wrong)  # type: ignore[arg-type]
