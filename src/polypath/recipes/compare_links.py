"""Train several link predictors on the same links of one graph, and compare them on one page.

Systems are those of `polypath.recipes.links`; measures are HeaRT's (Li et al. 2023) and OGB's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from polypath.errors import InputError
from polypath.graphs import Adjacency, hard_negatives, split_links
from polypath.graphs.saved import SavedPredictor
from polypath.recipes.links import (
    HITS,
    TEST,
    VALID,
    Links,
    Source,
    measures,
    parameters,
    scores_of,
    source,
    system,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.training.links import LinkTask
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "graphs"
NAMES = {"mrr": "MRR", **{f"hits@{k}": f"Hits@{k}" for k in HITS}, "auc": "AUC"}


@dataclass(frozen=True)
class Config:
    """Which link predictors are compared, on which graph."""

    systems: Sequence[str] = ("ncn", "gae", "link-moe", "heuristics")
    """Link predictors: cn, aa, ra, katz, ppr, sp, jaccard, pa or cosine; heuristics for the best of
    these; mlp, gcn, gae, ncn, ncnc, nbfnet or link-moe. The first is what others are held
    against."""
    data: Path | None = None
    """A file of edges, two names a line, instead of a data set."""
    data_set: str | None = None
    """cora, citeseer, pubmed, or imports (modules of the Python standard library); by
    default Cora where data_dir has it, else imports."""
    data_dir: Path | None = None
    """A folder of public data sets; the one that POLYPATH_DATA names by default."""
    seeds: int = 3
    """Splits of the links, with every system on each."""
    valid: float = VALID
    """The share of the links to validate on."""
    test: float = TEST
    """The share of the links to test on."""
    hard: int = 0
    """Negatives of each link to test on that are hard to tell from it, an even number; 0 for as
    many as there are links, drawn at random, for all of them."""
    epochs: int = 40
    """Times that a network sees every link; the best by validation is kept."""
    workers: int = 0
    """Systems trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        if not self.systems or len(set(self.systems)) < len(self.systems):
            raise InputError(f"systems={' '.join(self.systems)!r}: each may be named once")
        for name in self.systems:
            system(name)
        for name, least in (("seeds", 1), ("epochs", 1), ("hard", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; at least {least} is needed")
        if self.hard % 2:
            raise InputError(f"hard={self.hard}; 0, 2, 4, 6, … is right")


PRESETS: dict[str, dict[str, Any]] = {"quick": {"data_set": "imports", "seeds": 2, "epochs": 10}}


@dataclass(frozen=True)
class Contest:
    """One system on a graph; models: where the first seed's predictor is saved."""

    name: str
    source: Source
    valid: float
    test: float
    hard: int
    epochs: int
    models: Path


def run(config: Config, run: Run) -> Outcome:
    """Train every system under every seed; compare what they find.

    The first seed's predictors are saved in models/, for `polypath links predict`.
    """
    kept = source(config.data, config.data_set, config.data_dir, run.folder)
    sizes = config.valid, config.test, config.hard, config.epochs
    work = {
        name: partial(on_system, Contest(name, kept, *sizes, run.folder / "models" / name))
        for name in config.systems
    }
    facts = trials(work, config.seeds, config.epochs, run.folder / "links", config.workers)
    return conclude(run, facts, [table(facts, config.hard)], claims(facts))


def on_system(contest: Contest, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train one system on one split; what it measures on the links to test, by name."""
    graph = contest.source.read()
    whole, generator = Adjacency.of(graph), torch.Generator().manual_seed(seed)
    split = split_links(whole, generator, contest.valid, contest.test)
    negatives = split.test_negatives
    if contest.hard:
        negatives = hard_negatives(
            split.graph, split.test, contest.hard, generator, known=whole, x=graph.x
        )
    links = Links(LinkTask(split, graph.x, None), contest.epochs, contest.source.published)
    began = time.perf_counter()
    predictor = system(contest.name)(links, seed, reporter)
    seconds = time.perf_counter() - began
    positives, others = (
        scores_of(predictor, split, graph.x, pairs) for pairs in (split.test, negatives)
    )
    found = measures(positives, others)
    if seed == 0:
        SavedPredictor(predictor, whole, graph.names, graph.x).save(contest.models)
    facts = {"measures": found, "parameters": parameters(predictor), "seconds": seconds}
    return facts, f"MRR {found['mrr']:.3f}"


def table(facts: Mapping[str, list[Facts]], hard: int) -> Table:
    """What each system finds, and what it costs."""
    rows: list[list[Any]] = []
    for name, own in facts.items():
        mean, low, high = estimate([one["measures"]["mrr"] for one in own])
        row: list[Any] = [name, mean, "" if low is None else f"{low:.3f} … {high:.3f}"]
        for key in list(NAMES)[1:]:
            values = [one["measures"][key] for one in own]
            row.append(None if None in values else fmean(values))
        rows.append([*row, fmean(one["seconds"] for one in own), own[0]["parameters"]])
    among = f"its own {hard} hard negatives" if hard else "all negatives, drawn at random"
    shown = list(NAMES.values())
    return Table(
        "Links to test",
        ["system", shown[0], "95 % interval", *shown[1:], "seconds", "parameters"],
        rows,
        note=f"Each link among {among}; ties in the middle. Means over splits. Seconds of "
        "training, of one process. Epochs and heuristics are chosen by MRR on links to validate "
        "on, among negatives drawn at random.",
    )


def claims(facts: Mapping[str, list[Facts]]) -> list[Claim]:
    """Whether each system differs from the first, split by split."""
    ranks = {name: [one["measures"]["mrr"] for one in own] for name, own in facts.items()}
    first, *others = ranks
    return [
        judge(
            f"{name} ranks links higher than {first} (MRR, difference)",
            "this comparison",
            first,
            ranks[name],
            ranks[first],
            "higher",
        )
        for name in others
    ]
