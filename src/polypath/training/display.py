"""The progress of a run: loss, tokens per second, time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from polypath.training.distribution import is_main

console = Console(stderr=True)


class Display:
    """One bar over all steps of a run and one for each part; a line for each part that is done."""

    def __init__(self, progress: Progress, parts: int, steps: int) -> None:
        self._progress = progress
        self._steps = steps
        self._all = progress.add_task("all", total=parts * steps, facts="")
        self._parts: dict[str, TaskID] = {}

    def show(self, what: str, part: str, values: tuple[Any, ...]) -> None:
        """Take what a part's reporter says: "skip" or "advance" with its values."""
        if part not in self._parts:
            self._parts[part] = self._progress.add_task(part, total=self._steps, facts="")
        if what == "skip":
            self._move(part, values[0], "")
        else:
            loss, rate = values
            self._move(part, 1, f"loss {loss:.3f}  {rate:,.0f} tokens/s")

    def _move(self, part: str, steps: int, facts: str) -> None:
        self._progress.update(self._parts[part], advance=steps, facts=facts)
        self._progress.update(self._all, advance=steps)

    def done(self, part: str, result: str) -> None:
        """Leave a line about a finished part in the place of its bar."""
        if part in self._parts:
            self._progress.remove_task(self._parts.pop(part))
        self._progress.console.print(f"  {part}: {result}", highlight=False)


@contextmanager
def display(parts: int, steps: int) -> Iterator[Display]:
    """A display for `parts` parts of `steps` steps; silent on ranks other than the first."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    shown = console if is_main() else Console(quiet=True)
    with Progress(*columns, console=shown, transient=True) as progress:
        yield Display(progress, parts, steps)
