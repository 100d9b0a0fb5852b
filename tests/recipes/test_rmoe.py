from pathlib import Path

import pytest
import torch

from polypath.recipes.rmoe import Config, arms
from polypath.recipes.text import build
from recipe_runs import TINY, first_column, outcome_of


def test_controls_without_recurrence_have_as_many_parameters() -> None:
    config = Config()
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(config, arm, 256).parameters())
            for name, arm in arms(config).items()
        }
    assert sizes["rmoe"] == sizes["not-passed"] == sizes["detached"] == sizes["residual"]
    assert sizes["shared-projection"] == sizes["rmoe"] - 5 * 32 * 64
    assert sizes["rmoe"] < sizes["smoe-mlp"] * 1.01


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path / "run", "run rmoe", *TINY)
    assert first_column(outcome, 0) == list(arms(Config()))
    assert len(outcome["claims"]) == 8
    means = {row[0]: row[3] for row in outcome["tables"][0]["rows"]}
    assert outcome["claims"][0]["measured"] == pytest.approx(means["rmoe"] - means["smoe"])
    shared = {row[0]: row[1:4] for row in outcome["tables"][1]["rows"]}
    for found, chance, corrected in shared.values():
        assert corrected == pytest.approx(found - chance, abs=1e-9)
