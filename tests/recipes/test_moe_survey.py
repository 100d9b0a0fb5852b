from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.recipes.moe_survey import (
    CLUSTERS,
    DIM,
    HIDDEN,
    OUT,
    SPARSE,
    Config,
    Regression,
    Task,
    advance,
    gates,
    measured,
)
from recipe_runs import first_column, outcome_of


def test_a_task_is_its_seed_and_its_draws_differ() -> None:
    one, same, other = Task(1), Task(1), Task(2)
    assert torch.equal(one.maps, same.maps) and not torch.equal(one.maps, other.maps)
    first, second = one.draw(500), one.draw(500)
    assert torch.equal(first.x, same.draw(500).x) and not torch.equal(first.x, second.x)
    assert first.x.shape == (500, DIM) and first.y.shape == (500, OUT)
    for n in range(5):
        wanted = first.x[n] @ one.maps[first.cluster[n]]
        torch.testing.assert_close(first.y[n], wanted)


def test_experts_are_as_large_as_the_dense_layers_they_are_held_against() -> None:
    known = gates()
    assert set(SPARSE) <= set(known)
    active, every = (known[f"dense, {which} parameters"] for which in ("active", "all"))
    assert (active, every) == (2 * HIDDEN, CLUSTERS * HIDDEN)
    for name in SPARSE:
        routed = known[name]
        assert isinstance(routed, RoutedLayers)
        assert (routed.num_experts, routed.hidden) == (CLUSTERS, HIDDEN)


def test_a_perfect_layer_is_seen_to_be_so() -> None:
    task = Task(0)
    test = task.draw(300)
    model = Regression(gates()["soft"]).double()

    class Answer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return test.y

    model.leave = Answer()  # type: ignore[assignment]
    facts = measured(model, type(test)(test.x.double(), test.y.double(), test.cluster))
    assert facts["R²"] == pytest.approx(1) and facts["experts"] == CLUSTERS
    assert facts["spread"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("name", gates())
def test_every_gate_trains(name: str) -> None:
    torch.manual_seed(0)
    model, task = Regression(gates()[name]).train(), Task(0)
    points = task.draw(200)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    errors = []
    for step in range(25):
        errors.append(advance(model, points, step))
        optimiser.step()
        optimiser.zero_grad()
    assert errors[-1] < 0.9 * errors[0]


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="steps=0"):
        Config(steps=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = ["--seeds", "2", "--steps", "60"]
    outcome = outcome_of(tmp_path / "run", "run moe-survey", *options)
    assert first_column(outcome, 0) == list(gates())
    assert len(outcome["claims"]) == len(SPARSE) + 4
    spread = outcome["claims"][len(SPARSE) + 1]
    assert spread["claim"].startswith("Expert choice") and spread["held"] is True
