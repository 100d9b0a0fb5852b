from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.graph_of_tokens import Config, arms, frozen_routers, swap
from polypath.recipes.text import build
from polypath.routing import routed_layers
from recipe_runs import TINY, first_column, outcome_of


def test_only_likeness_has_parameters_of_its_own() -> None:
    config = Config(dim=16, heads=2)
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(config, arm, 64).parameters())
            for name, arm in arms(config).items()
        }
    assert sizes.pop("similarity") == sizes["smoe"] + config.layers * config.dim**2
    assert len(set(sizes.values())) == 1


def test_routers_are_frozen_from_a_step_on() -> None:
    config = Config(dim=16, heads=2)
    torch.manual_seed(0)
    model = build(config, arms(config)["frozen"], 64)
    ids = torch.randint(64, (2, 8))
    for step, frozen in ((3, False), (4, True)):
        model.zero_grad()
        with frozen_routers(model, step, after=4):
            model(input_ids=ids, labels=ids).loss.backward()
        for layer in routed_layers(model).values():
            assert (layer.router.scorer.weight.grad is None) == frozen
            assert all(p.grad is not None for p in layer.experts.parameters())


def test_swapping_keeps_the_tokens_and_moves_the_share() -> None:
    tokens = torch.arange(2000).view(10, 200)
    swapped = swap(tokens, 0.05, seed=1)
    assert torch.equal(swapped.flatten().sort().values, tokens.flatten())
    assert int((swapped != tokens).sum()) == 100
    assert torch.equal(swapped, swap(tokens, 0.05, seed=1))
    assert torch.equal(swap(tokens, 0.0, seed=1), tokens)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"sigma=0"):
        Config(sigma=0.0)
    with pytest.raises(InputError, match=r"frozen=1\.5"):
        Config(frozen=1.5)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = [*TINY, "--heads", "2"]
    outcome = outcome_of(tmp_path / "run", "run graph-of-tokens", *options)
    assert first_column(outcome, 1) == list(arms(Config()))
    assert all(isinstance(value, float) for value in outcome["tables"][1]["rows"][0][1:])
    assert len(outcome["claims"]) == 16
