from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.recipes.mc_smoe import Config, arms
from recipe_runs import first_column, outcome_of

SMALL = ["--seeds", "2", "--steps", "4", "--recovery", "2", "--dim", "16", "--hidden", "16"]
SMALL += ["--experts", "4", "--kept", "2", "--layers", "2", "--context", "32", "--rank", "2"]
SMALL += ["--windows", "4", "--calibration", "4", "--limit-mb", "0.2"]


def test_arms_change_one_thing_each() -> None:
    own = arms(Config())
    method = own.pop("M-SMoE")
    for arm in own.values():
        assert sum(getattr(arm, f) != getattr(method, f) for f in vars(method)) == 1
    assert method.excluded == (0,) and method.experts == 4


def test_compressed_alone_takes_the_bytes_of_merged_and_compressed() -> None:
    config = Config()
    rank, rows = config.small()
    both, whole = 2 * (config.dim + config.hidden), 2 * config.dim * config.hidden
    merged = config.kept * (config.rank * both + config.rows * whole)
    assert config.experts * (rank * both + rows * whole) == pytest.approx(merged)


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="kept=16 of experts=16"):
        Config(kept=16)
    with pytest.raises(InputError, match="rows=0"):
        Config(rows=0)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    outcome = outcome_of(tmp_path / "run", "run mc-smoe", *SMALL)
    names = first_column(outcome, 0)
    assert set(names) == {"full", "no distillation", "pruned", "MC-SMoE", "compressed alone"} | set(
        arms(Config())
    )
    sizes = {row[0]: row[1] for row in outcome["tables"][0]["rows"]}
    assert sizes["MC-SMoE"] < sizes["M-SMoE"] < sizes["full"]
    same = next(claim for claim in outcome["claims"] if claim["claim"].startswith("Routers choose"))
    assert same["measured"] == 1.0
