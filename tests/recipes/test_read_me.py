from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.recipes.read_me import ARMS, Config
from recipe_runs import first_column, outcome_of

SMALL = ["--seeds", "2", "--steps", "4", "--rounds", "1", "--router-steps", "2", "--expert-steps"]
SMALL += ["2", "--dim", "16", "--hidden", "16", "--layers", "2", "--context", "32", "--windows"]
SMALL += ["2", "--limit-mb", "0.05", "--router-width", "16"]


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="kept=1"):
        Config(kept=1.0)
    with pytest.raises(InputError, match="rounds=0"):
        Config(rounds=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path / "run", "run read-me", *SMALL)
    assert first_column(outcome, 0) == list(ARMS)
    routes = outcome["tables"][1]["rows"]
    assert [row[0] for row in routes] == ["source", "docstrings", "arithmetic", "characters"]
    for row in routes:
        assert sum(row[1:]) == pytest.approx(1.0)
    assert len(outcome["claims"]) == 9
