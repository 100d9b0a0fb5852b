from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.dynamoe import Config, arms, classifiers
from polypath.recipes.images import Classifier
from polypath.recipes.text import build
from polypath.routing import routed_layers
from recipe_runs import TINY, first_column, outcome_of


def size(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_schedules_have_equal_budgets() -> None:
    with torch.device("meta"):
        routed = {n: Classifier(64, 10, r) for n, r in classifiers(Config()).items()}
    dense = size(routed.pop("dense, all parameters"))
    del routed["dense, active parameters"]
    assert len({size(model) for model in routed.values()}) == 1
    assert 0 < size(routed["top-2, balanced"]) - dense < 0.02 * dense  # the rows of routers


@pytest.mark.parametrize(("experts", "k"), [(8, 2), (8, 4), (4, 1), (16, 3), (2, 1)])
def test_the_percentile_on_text_keeps_k_where_layers_are_equal(experts: int, k: int) -> None:
    torch.manual_seed(0)
    config = Config(experts=experts, k=k, dim=16, hidden=8)
    chosen = arms(config)
    for layer in routed_layers(build(config, chosen["uniform"], 64)).values():
        assert layer.router(torch.randn(50, 16)).count().unique().tolist() == [k]
    with torch.device("meta"):
        sizes = {size(build(config, arm, 64)) for arm in chosen.values()}
    assert len(sizes) == 1


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="epochs=0; at least 1"):
        Config(epochs=0)
    with pytest.raises(InputError, match="image_experts=2; at least 3"):
        Config(image_experts=2)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = [*TINY, "--epochs", "1", "--image-seeds", "2"]
    outcome = outcome_of(tmp_path / "run", "run dynamoe", *options)
    assert first_column(outcome, 1) == list(classifiers(Config()))
    assert first_column(outcome, 2) == list(arms(Config()))
    assert len(outcome["claims"]) == 15
    spike, same, *_ = outcome["claims"]
    assert spike["held"] is True and same["held"] is True
