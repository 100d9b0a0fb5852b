"""The page of an operation: what it did to a checkpoint."""

from __future__ import annotations

from polypath.report.outcome import Cell, Outcome, Table
from polypath.surgery.report import Surgery
from polypath.training.run import commit, machine

PAGE = "surgery.html"


def outcome_of(surgery: Surgery, name: str) -> Outcome:
    """The report of an operation in the form of all pages; name: of the checkpoint."""
    before, after = surgery.before, surgery.after
    sizes: list[list[Cell]] = [
        [what, getattr(before, field), getattr(after, field), _ratio(surgery, field)]
        for what, field in (
            ("parameters", "parameters"),
            ("met by a token", "active"),
            ("bytes", "bytes"),
        )
    ]
    tables = [
        Table(
            "Sizes",
            ["", "before", "after", "after / before"],
            sizes,
            note=" ".join(f"{note[0].upper()}{note[1:]}." for note in surgery.notes),
        ),
        Table(
            "What became of what",
            ["part", "was", "became", "share kept"],
            [[move.part, move.was, move.became, move.share] for move in surgery.moves],
        ),
    ]
    if surgery.checks:
        rows: list[list[Cell]] = [
            [check.what, check.measured, check.bound, "yes" if check.held else "no"]
            for check in surgery.checks
        ]
        note = "The largest difference, relative to the largest value."
        columns = ["what should be exact", "measured", "rounding allows", "held"]
        tables.append(Table("How exact it is", columns, rows, note))
    settings: list[list[Cell]] = [[key, str(value)] for key, value in surgery.settings.items()]
    tables.append(Table("Settings", ["option", "value"], settings))
    return Outcome(
        recipe=f"{surgery.operation} {name}",
        commit=commit(),
        machine=machine(),
        seeds=[],
        seconds=surgery.seconds,
        tables=tables,
        claims=[],
    )


def _ratio(surgery: Surgery, field: str) -> float:
    return getattr(surgery.after, field) / max(1, getattr(surgery.before, field))
