from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.language.elastic import elastic_step
from polypath.recipes.ernie5 import Config, arms, drawn, points
from polypath.recipes.text import TextConfig, build
from recipe_runs import TINY, first_column, outcome_of


def test_all_arms_are_one_model() -> None:
    config = Config(dim=16)
    with torch.device("meta"):
        sizes = {
            sum(p.numel() for p in build(config, arm, 64).parameters())
            for arm in arms(config).values()
        }
    assert len(sizes) == 1
    around = {name: arm.around for name, arm in arms(config).items()}
    assert around["smoe"] is None and around["shorter"] is None
    assert around["depth"].func is elastic_step
    elastic = around["depth"].keywords["elastic"]
    assert (elastic.depth, elastic.width, elastic.count) == (0.75, 1.0, 1.0)
    assert arms(config)["shorter"].share == pytest.approx(0.48)


def test_sub_models_are_parts_of_the_configured_one() -> None:
    config = Config(layers=4, experts=16, k=4)
    assert points(config)["whole"] == (4, 16, 4)
    assert points(config)["½ of all"] == (2, 8, 2)


def test_the_drawn_part_has_the_size_of_the_chosen_one() -> None:
    class Part:
        seed = 3

    part = drawn(Config(), Part())  # type: ignore[arg-type]
    layers, experts, k = points(Config())["½ of all"]
    assert len(part.layers) == layers and part.k == k
    assert {len(kept) for kept in part.experts.values()} == {experts}


def test_bad_sizes_are_refused() -> None:
    assert issubclass(Config, TextConfig)
    with pytest.raises(InputError, match="k=1"):
        Config(k=1)
    with pytest.raises(InputError, match="tuning=0"):
        Config(tuning=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = [*TINY, "--layers", "3", "--grid-windows", "4", "--stream-steps", "4"]
    outcome = outcome_of(tmp_path / "run", "run ernie5", *options)
    assert first_column(outcome, 1) == list(arms(Config()))
    grid = dict(zip(outcome["tables"][1]["columns"], outcome["tables"][1]["rows"][0], strict=True))
    assert grid["whole"] > 0 and grid["faster"] > 0
    assert len(outcome["tables"][2]["rows"]) == 3 and len(outcome["tables"][3]["rows"]) == 3
    assert len(outcome["claims"]) == 13
    assert outcome["claims"][-1]["held"] is True
