"""What all recipes measured, in one table."""

from __future__ import annotations

from pathlib import Path

from polypath.errors import InputError
from polypath.report.outcome import Cell, Outcome, Table
from polypath.report.wording import word


def results_table(folder: str | Path) -> Table:
    """One row for each claim of every `outcome.json` under a folder, in the order of their paths.

    Raises InputError when the folder holds none, or one that cannot be read.
    """
    paths = sorted(Path(folder).rglob("outcome.json"))
    if not paths:
        raise InputError(f"{folder}: no outcome.json in it or below it")
    rows: list[list[Cell]] = []
    for outcome in map(Outcome.read, paths):
        for claim in outcome.claims:
            low, high = claim.interval or (None, None)
            rows.append(
                [
                    outcome.recipe,
                    claim.claim,
                    claim.baseline,
                    claim.measured,
                    low,
                    high,
                    claim.seeds,
                    word(claim),
                    outcome.commit,
                ]
            )
    columns = ["recipe", "claim", "against", "measured", "low", "high", "seeds", "held", "commit"]
    return Table("Results", columns, rows)
