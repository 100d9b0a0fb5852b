from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.erc_loss import Config, arms, students
from polypath.recipes.text import build
from recipe_runs import TINY, first_column, outcome_of


def test_a_loss_adds_no_parameter() -> None:
    config = Config()
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in build(config, arm, 256).parameters())
            for name, arm in arms(config).items()
        }
    rows = config.dim * config.experts * config.layers
    # dim = hidden: two factors of half the rank are one matrix; and there is no router.
    assert sizes.pop("autonomous") == sizes["smoe"] - rows
    assert len(set(sizes.values())) == 1


def test_students_are_tied_as_the_models_are() -> None:
    known = students(Config())
    assert set(known) == {*arms(Config()), "unbalanced"}
    assert known["erc"].losses == {"load_balance": 0.01, "coupling": 1.0}
    assert known["unbalanced"].losses == {}


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="specialist_steps=0"):
        Config(specialist_steps=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = [*TINY, "--specialist-steps", "60", "--specialist-seeds", "2"]
    outcome = outcome_of(tmp_path / "run", "run erc-loss", *options)
    assert first_column(outcome, 0) == list(arms(Config()))
    assert first_column(outcome, 1) == list(students(Config()))
    assert first_column(outcome, 2) == list(arms(Config()))[:-1]
    assert len(outcome["claims"]) == 15
    (drawn,) = [f for f in outcome["figures"] if f["title"] == "Coupling α* on specialists"]
    assert drawn["series"][0]["x"] == [50, 60]
