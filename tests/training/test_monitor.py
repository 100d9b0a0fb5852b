import pytest
import torch

from polypath.diagnosis import pathway_distance, window_pathways
from polypath.experts import FeedForwardExperts
from polypath.routing import MoE, Routing, TopKRouter
from polypath.training.monitor import Monitor, kept_mass


def routing(experts: list[int], gates: bool = True) -> Routing:
    chosen = torch.tensor(experts)[:, None]
    scores = torch.eye(3)[chosen[:, 0]] * 4
    return Routing(scores, chosen, torch.ones(chosen.shape), scores.softmax(1) if gates else None)


def test_what_is_noted_of_routes() -> None:
    layers = {"a": routing([0, 0, 1, 2]), "b": routing([1, 1, 1, 1])}
    facts = Monitor().facts(layers, 2)
    assert facts["count"] == {"a": 1.0, "b": 1.0}
    assert facts["load"] == {"a": [0.5, 0.25, 0.25], "b": [0.0, 1.0, 0.0]}
    wanted = float(torch.distributions.Categorical(layers["a"].probabilities[0]).entropy())
    assert facts["entropy"]["a"] == pytest.approx(wanted)
    assert facts["pathways"] == pathway_distance(window_pathways(layers, 2)) > 0
    assert "fluctuation" not in facts


def test_changes_are_counted_from_one_validation_to_the_next() -> None:
    monitor = Monitor()
    monitor.facts({"a": routing([0, 0, 1, 2])}, 2)
    resumed = Monitor()
    resumed.restore(monitor.tensors() | {"random": torch.zeros(3)})
    for each in (monitor, resumed):
        assert each.facts({"a": routing([0, 1, 1, 1])}, 2)["fluctuation"] == {"a": 0.5}
        assert each.facts({"a": routing([0, 1, 1, 1])}, 2)["fluctuation"] == {"a": 0.0}


def test_other_things_are_not_compared() -> None:
    monitor = Monitor()
    monitor.facts({"a": routing([0, 0, 1, 2])}, 2)
    assert "fluctuation" not in monitor.facts({"a": routing([0, 0])}, 2)


def test_pathways_need_gates_in_every_layer() -> None:
    layers = {"a": routing([0, 0, 1, 2]), "b": routing([0, 0, 1, 2], gates=False)}
    facts = Monitor().facts(layers, 2)
    assert set(facts["entropy"]) == {"a"} and "pathways" not in facts


def test_kept_mass_is_the_sum_of_weights_of_layers_that_ran() -> None:
    torch.manual_seed(0)
    layers = torch.nn.ModuleList(
        MoE(TopKRouter(4, 6, k, gate="softmax"), FeedForwardExperts(6, 4, 3)) for k in (1, 6, 2)
    )
    assert kept_mass(layers) == {}
    for layer in layers[:2]:
        layer(torch.randn(9, 4))
    mass = kept_mass(layers)["mass"]
    assert set(mass) == {"0", "1"} and mass["1"] == pytest.approx(1.0)
    assert mass["0"] == pytest.approx(float(layers[0].last.weights.detach().sum() / 9))
