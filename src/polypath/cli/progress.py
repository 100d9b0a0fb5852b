"""How far an operation has come, in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextmanager
def progress(total: int | None) -> Iterator[Callable[[str], None]]:
    """A bar that moves on with every line it is told; total: how many, None where not known."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("starting", total=total)

        def told(line: str) -> None:
            bar.update(task, advance=1, description=line)

        yield told
