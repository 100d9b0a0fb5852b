"""Small experiments without text: trials that train side by side, each of which keeps its facts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polypath.files import replace_text
from polypath.report import Claim, Figure, Outcome, Table
from polypath.training import distribution
from polypath.training.display import display
from polypath.training.parts import Reporter, run_parts, workers_for
from polypath.training.run import Run, commit, machine

Facts = dict[str, Any]
Work = Callable[[int, Reporter], tuple[Facts, str]]
"""From a seed and a reporter to what came out, as JSON can hold it, and a line about it."""


@dataclass(frozen=True)
class _Trial:
    work: Work
    seed: int
    path: Path


def trials(
    arms: Mapping[str, Work], seeds: int, reports: int, folder: Path, workers: int
) -> dict[str, list[Facts]]:
    """The facts of every arm under seeds 0, 1, …; those that the folder has are not made again.

    arms: importable, as they are sent to other processes. reports: how often each reports.
    """
    known = {
        f"{arm}, {folder.name}, seed {seed}": _Trial(work, seed, folder / f"{arm}-{seed}.json")
        for seed in range(seeds)
        for arm, work in arms.items()
    }
    left = {name: trial for name, trial in known.items() if not trial.path.exists()}
    if left and distribution.is_main():
        folder.mkdir(parents=True, exist_ok=True)
        # Among ranks, in processes of their own: what sums over ranks would wait for idle ones.
        count = workers_for(left, workers, "cpu") if distribution.world() == 1 else 2
        with display(len(left), reports) as shown:
            run_parts(left, _work, shown, count)
    distribution.wait()
    return {
        arm: [json.loads((folder / f"{arm}-{seed}.json").read_text()) for seed in range(seeds)]
        for arm in arms
    }


def conclude(
    run: Run,
    facts: Mapping[str, list[Facts]],
    tables: list[Table],
    claims: list[Claim],
    figures: Sequence[Figure] = (),
) -> Outcome:
    """What came out of a recipe that is trials alone; each tells the "seconds" that it took."""
    return Outcome(
        recipe=run.recipe,
        commit=commit(),
        machine=machine(),
        seeds=list(range(len(next(iter(facts.values()))))),
        seconds=sum(one["seconds"] for own in facts.values() for one in own),
        tables=tables,
        claims=claims,
        figures=figures,
    )


def _work(trial: _Trial, reporter: Reporter) -> str:
    facts, line = trial.work(trial.seed, reporter)
    replace_text(trial.path, json.dumps(facts))
    return line
