import math
from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.recipes.dynamic_dino import ARMS, Config, partners
from polypath.surgery.calibration import RoutingSums
from recipe_runs import first_column, outcome_of

SMALL = ["--seeds", "2", "--steps", "4", "--tuning", "2", "--dim", "16", "--hidden", "16"]
SMALL += ["--layers", "1", "--context", "32", "--windows", "4", "--limit-mb", "0.2"]
SMALL += ["--skill-steps", "50", "--skill-tuning", "50"]


def test_partners_of_experts() -> None:
    sums = RoutingSums.empty(4)
    sums.together += torch.tensor([[0, 3, 3, 3], [3, 0, 0, 0], [3, 0, 0, 0], [3, 0, 0, 0]])
    found = partners(sums)
    assert found["entropy"] == pytest.approx(0.25 * math.log(3) / math.log(3))
    assert found["partners"] == pytest.approx((3 + 1 + 1 + 1) / 4)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="hidden=30"):
        Config(hidden=30)
    with pytest.raises(InputError, match="skill_steps=0"):
        Config(skill_steps=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path / "run", "run dynamic-dino", *SMALL)
    assert first_column(outcome, 0) == ["dense", "dense, tuned", *ARMS]
    skills = {row[0]: row[1:] for row in outcome["tables"][1]["rows"]}
    assert skills["4 copies in 2"][0] == pytest.approx(skills["dense"][0])
    start = outcome["claims"][0]
    assert start["held"] is True and len(outcome["claims"]) == 12
