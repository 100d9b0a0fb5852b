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
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True))
    task = bar.add_task("", total=total)

    def told(line: str) -> None:
        bar.start()  # not before: an error that comes first stays one line
        bar.update(task, advance=1, description=line)

    try:
        yield told
    finally:
        if bar.live.is_started:
            bar.stop()
