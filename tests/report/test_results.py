from dataclasses import replace
from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.report import Outcome, results_table


def test_every_claim_of_every_outcome_is_a_row(tmp_path: Path, outcome: Outcome) -> None:
    for recipe in ("b", "a"):
        (tmp_path / recipe / "deeper").mkdir(parents=True)
        replace(outcome, recipe=recipe).save(tmp_path / recipe / "deeper" / "outcome.json")
    table = results_table(tmp_path)
    expected = [
        (recipe, claim.claim, claim.measured, *(claim.interval or (None, None)), claim.seeds)
        for recipe in ("a", "b")
        for claim in outcome.claims
    ]
    at = [table.columns.index(n) for n in ("recipe", "claim", "measured", "low", "high", "seeds")]
    assert [tuple(row[i] for i in at) for row in table.rows] == expected
    held = table.columns.index("held")
    assert [row[held] for row in table.rows[:3]] == ["held", "not held", "undecided"]


def test_a_folder_without_outcomes_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no outcome\.json"):
        results_table(tmp_path)
    with pytest.raises(InputError, match=r"no outcome\.json"):
        results_table(tmp_path / "absent")
