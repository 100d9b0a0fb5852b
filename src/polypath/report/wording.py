"""Numbers, times and texts as the page shows them: filters of the templates."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from polypath.report.figures import Number
from polypath.report.outcome import Cell, Claim, Table


def number(value: Cell) -> str:
    """A cell as text: four digits, a true minus, commas in thousands; None is a dash."""
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _fixed(value, 0)
    return _fixed(value, 0) if 1000 <= abs(value) < 1e15 else f"{value:.4g}".replace("-", "−")


def aligned(values: Sequence[Number], digits: int) -> list[str]:
    """Numbers with as many decimals each as the largest needs for `digits` digits."""
    known = [abs(value) for value in values if value]
    decimals = max(0, digits - 1 - math.floor(math.log10(max(known, default=1.0))))
    return ["" if value is None else _fixed(value, decimals) for value in values]


def rows(table: Table) -> list[list[str]]:
    """The cells of a table as text; in a column of numbers the points stand below each other."""
    columns = [_column(cells) for cells in zip(*table.rows, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _column(cells: Sequence[Cell]) -> list[str]:
    floats = [cell for cell in cells if isinstance(cell, float)]
    if len(floats) == len(cells) and all(value == 0 or _shown(value, floats) for value in floats):
        return aligned(floats, 4)
    return [number(cell) for cell in cells]


def _shown(value: float, beside: Sequence[float]) -> bool:
    """Whether `value` keeps two digits with the decimals of the largest beside it."""
    return abs(value) >= 0.01 * max(map(abs, beside))


def measured(claim: Claim) -> list[str]:
    """Mean, low and high of a claim as text, as exact as the interval allows; or the mean alone."""
    if claim.measured is None or claim.interval is None:
        return [number(claim.measured)]
    low, high = claim.interval
    half = (high - low) / 2
    if half <= 1e-6 * abs(claim.measured):  # seeds agree, but for rounding
        return [number(value) for value in (claim.measured, low, high)]
    decimals = min(12, max(0, 1 - math.floor(math.log10(half))))
    return [_fixed(value, decimals) for value in (claim.measured, low, high)]


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def visible(text: str) -> str:
    """Text whose control characters are signs, so that neither HTML nor the eye drops them.

    Tabs and newlines stay; half surrogate pairs become the sign for what cannot be shown.
    """
    return "".join(_sign(c) if unicodedata.category(c) in ("Cc", "Cs") else c for c in text)


def word(claim: Claim) -> str:
    """Whether a claim held, in words."""
    if claim.held == "undecided":
        return claim.held
    return "held" if claim.held else "not held"


def verdict(claims: Sequence[Claim]) -> str:
    """How many claims held, in one sentence."""
    held = sum(claim.held is True for claim in claims)
    failed = sum(claim.held is False for claim in claims)
    undecided = len(claims) - held - failed
    if not claims:
        return "No claims were tested."
    rest = [f"{failed} did not"] * bool(failed) + [f"{undecided} undecided"] * bool(undecided)
    noun = "claim" if len(claims) == 1 else "claims"
    return ", ".join([f"{held} of {len(claims)} {noun} held", *rest]) + "."


def _fixed(value: float, decimals: int) -> str:
    return f"{value:,.{decimals}f}".replace("-", "−")


def _sign(character: str) -> str:
    code = ord(character)
    if character in "\t\n":
        return character
    if code < 0x20:
        return chr(0x2400 + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
