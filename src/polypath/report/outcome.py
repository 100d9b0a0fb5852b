"""What a recipe found out, as plain frozen data that lives in `outcome.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from polypath.errors import InputError
from polypath.files import replace_text
from polypath.plain import decode, encode
from polypath.report.figures import Figure

Held = bool | Literal["undecided"]
Cell = str | float | int | bool | None


@dataclass(frozen=True)
class Claim:
    """A line of a paper beside what was measured.

    claim: what is claimed, with the quantity and its unit, in one line.
    source: paper, section or table.
    baseline: what it was compared with.
    measured: the mean over seeds, or None where it is not finite.
    interval: (low, high) of `measured`, or None where one seed gives none.
    seeds: how many seeds. held: True, False or "undecided"; see `statistics.judge`.
    """

    claim: str
    source: str
    baseline: str
    measured: float | None
    interval: Sequence[float] | None
    seeds: int
    held: Held

    def __post_init__(self) -> None:
        if self.interval is not None and len(self.interval) != 2:
            raise InputError(f"claim {self.claim!r}: its interval is not (low, high)")


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under named columns; None is an empty cell."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""

    def __post_init__(self) -> None:
        for i, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InputError(
                    f"table {self.title!r}: row {i} has {len(row)} cells "
                    f"under {len(self.columns)} columns"
                )


@dataclass(frozen=True)
class Outcome:
    """Everything a recipe hands over. seconds: how long the run took in all.

    machine: facts by name, as ("processor", "torch") to text. commit: of the code that ran.
    """

    recipe: str
    commit: str
    machine: Mapping[str, str]
    seeds: Sequence[int]
    seconds: float
    tables: Sequence[Table]
    claims: Sequence[Claim]
    figures: Sequence[Figure] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        return encode(self)

    @classmethod
    def from_json(cls, value: Any, where: str = "outcome") -> Outcome:
        """What `to_json` gave, sequences as lists; InputError says which part is wrong."""
        return decode(cls, value, where)

    def save(self, path: str | Path) -> None:
        """Write it as JSON, all at once: a kill leaves the old file or the new one."""
        replace_text(Path(path), json.dumps(self.to_json(), allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | Path) -> Outcome:
        """Read what `save` wrote; raises InputError for a file that is absent or not one."""
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from error
        return cls.from_json(value, str(path))
