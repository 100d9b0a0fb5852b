"""What a run says in the terminal when it ends."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Grid

from polypath.report import Claim, Outcome, Table

MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", "undecided": "[yellow]?[/]"}


def print_outcome(outcome: Outcome) -> None:
    """The tables and the claims of an outcome."""
    console = Console()
    for table in outcome.tables:
        console.print(_grid(table))
    for claim in outcome.claims:
        console.print(f"{MARKS[claim.held]} {claim.claim}: {measured(claim)}", highlight=False)


def measured(claim: Claim) -> str:
    """The measured value of a claim with its interval, as text."""
    if claim.measured is None:
        return "not measured"
    if claim.interval is None:
        return f"{claim.measured:+.4g} ({claim.seeds} seed, no interval)"
    low, high = claim.interval
    return f"{claim.measured:+.4g} [{low:+.4g}, {high:+.4g}] over {claim.seeds} seeds"


def print_table(table: Table, markdown: bool = False) -> None:
    """A table for the terminal, or as Markdown."""
    if not markdown:
        Console().print(_grid(table))
        return
    print("| " + " | ".join(table.columns) + " |")
    print("|" + " --- |" * len(table.columns))
    for row in table.rows:
        print("| " + " | ".join(_text(cell) for cell in row) + " |")


def _grid(table: Table) -> Grid:
    grid = Grid(title=table.title, title_justify="left", box=None, header_style="bold")
    for place, column in enumerate(table.columns):
        cells = [row[place] for row in table.rows]
        words = any(isinstance(cell, str) and " " in cell for cell in cells)
        numbers = not any(isinstance(cell, str) for cell in cells)
        # Where the terminal is narrow, sentences wrap and figures stay whole.
        grid.add_column(
            column,
            justify="right" if numbers else "left",
            no_wrap=not words,
            min_width=20 if words else None,
        )
    for row in table.rows:
        grid.add_row(*(_text(cell) for cell in row))
    return grid


def _text(cell: str | float | bool | None) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
