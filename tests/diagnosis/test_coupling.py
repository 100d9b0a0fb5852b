import pytest
import torch
from torch import nn

from hosts import tiny_model
from polypath.diagnosis import layer_coupling, layer_couplings
from polypath.errors import InputError
from polypath.experts import ExpertList, FeedForwardExperts
from polypath.language import attach
from polypath.routing import HashRouter, MoE, TopKRouter, routed_layers


@pytest.mark.parametrize("kind", ["Olmoe", "Qwen3Moe", "Mixtral"])
def test_of_checkpoints_experts(kind: str) -> None:
    torch.manual_seed(0)
    model = attach(tiny_model(kind))
    found = layer_couplings(model)
    assert list(found) == list(routed_layers(model))
    name, own = next(iter(found.items()))
    moe = model.get_submodule(name)
    rows, fused = moe.router.scorer.weight, moe.experts.gate_up_proj
    gates = fused[:, : fused.shape[1] // 2]
    expected = torch.stack([(rows @ gate.T).norm(dim=1) for gate in gates], dim=1).detach()
    torch.testing.assert_close(own.matrix, expected)
    torch.testing.assert_close(own.gates, torch.stack([gate.norm() for gate in gates]).detach())
    assert own.loss(own.strength + 1e-5) == pytest.approx(0, abs=1e-6) != own.loss(0.5)
    assert own.strength > 1 and own.rows.shape == own.bound.shape == (len(rows),)


def test_layers_without_rows_are_passed_over_and_refused_alone() -> None:
    hashed = MoE(HashRouter(4, 2), FeedForwardExperts(4, 3, 5))
    plain = MoE(TopKRouter(3, 4, 2), FeedForwardExperts(4, 3, 5))
    assert list(layer_couplings(nn.ModuleDict({"hashed": hashed, "plain": plain}))) == ["plain"]
    with pytest.raises(InputError, match="HashScorer has no row"):
        layer_coupling(hashed)
    with pytest.raises(InputError, match="ExpertList does not show"):
        layer_coupling(MoE(TopKRouter(3, 4, 2), ExpertList(nn.Linear(3, 3) for _ in range(4))))
