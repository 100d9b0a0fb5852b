import math
from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.recipes.grokking_pathways import (
    Config,
    after_memorising,
    arms,
    correlation,
    rise_and_fall,
)
from recipe_runs import first_column, outcome_of


def course(distance: list[float], test: list[float], train: list[float] | None = None) -> dict:
    train = [1.0] * len(test) if train is None else train
    names = ("distance", "test accuracy", "training accuracy")
    looks = zip(distance, test, train, strict=True)
    return {"curve": [dict(zip(names, look, strict=True)) for look in looks]}


def test_rise_and_fall_are_counted_from_memorising_to_understanding() -> None:
    facts = course([9, 5, 10, 6, 20], [0, 0, 0.1, 0.95, 1], [0.5, 1, 1, 1, 1])
    assert len(after_memorising(facts)) == 4
    rise, fall = rise_and_fall(facts)
    assert rise == pytest.approx(10 / 5 - 1) and fall == pytest.approx(1 - 6 / 10)
    rise, fall = rise_and_fall(course([5, 10, 9], [0, 0.1, 0.2]))
    assert (rise, fall) == (pytest.approx(1.0), pytest.approx(0.1))
    assert math.isnan(rise_and_fall(course([5], [0], [0.4]))[0])


def test_correlations_of_what_does_not_move_are_none() -> None:
    looks = course([3, 2, 1], [0.1, 0.2, 0.3])["curve"]
    assert correlation(looks, "distance")[0] == pytest.approx(-1)
    assert math.isnan(correlation(looks, "training accuracy")[0])
    assert math.isnan(correlation(looks[:2], "distance")[0])


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"share=1\.0"):
        Config(share=1.0)
    with pytest.raises(InputError, match="every=0"):
        Config(every=0)
    with pytest.raises(InputError, match="experts=1"):
        Config(experts=1)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = ["--seeds", "2", "--steps", "60", "--every", "20", "--modulus", "11"]
    outcome = outcome_of(tmp_path / "run", "run grokking-pathways", *options)
    assert first_column(outcome, 0) == list(arms(Config()))
    assert len(outcome["claims"]) == 9
    assert outcome["figures"][0]["series"][0]["x"] == [20, 40, 60]
