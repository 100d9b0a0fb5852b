from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.rexmoe import Config, arms
from polypath.recipes.text import build
from recipe_runs import TINY, first_column, outcome_of


def test_reuse_adds_routers_alone() -> None:
    config = Config()
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(config, arm, 256).parameters())
            for name, arm in arms(config).items()
        }
    rows = config.dim * config.experts
    assert sizes["rexmoe"] == sizes["reuse-only"] == sizes["local-first"]
    assert sizes["rexmoe"] - sizes["smoe"] == config.layers * (config.group - 1) * rows
    assert sizes["expert-dropout"] == sizes["smoe"]
    experts = 3 * config.dim * config.hidden * config.experts * config.layers
    assert sizes["distinct-experts"] - sizes["rexmoe"] == (config.group - 1) * experts


def test_all_layers_share_where_there_are_more_than_a_group() -> None:
    assert "rexmoe-all" not in arms(Config())
    options = arms(replace(Config(), layers=8))["rexmoe-all"].routed.options
    assert options["group"] == 8 and options["start"] == 48 and options["end"] == 144


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"group": 1}, "group=1"),
        ({"group": 5}, "group=5 of layers=4"),
        ({"scaling_start": 0.7}, ""),
    ],
)
def test_bad_sizes_are_refused(values: dict, said: str) -> None:
    with pytest.raises(InputError, match=said or "scaling_start=0.7, scaling_end=0.6"):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path / "run", "run rexmoe", *TINY, "--layers", "4")
    names = list(arms(Config()))
    assert first_column(outcome, 0) == names
    assert len(outcome["claims"]) == 8
    used = {
        row[0]: dict(zip(outcome["tables"][1]["columns"], row, strict=True))
        for row in outcome["tables"][1]["rows"]
    }
    assert used["smoe"]["elsewhere"] == used["expert-dropout"]["elsewhere"] == 0
    assert 0.4 < used["rexmoe"]["elsewhere"] < 1
    assert used["rexmoe"]["gate mass"] < used["smoe"]["gate mass"] < 1
