"""What tells beforehand whose links a predictor will find: concentration beside degree.

Source: A Topological Perspective on Demystifying GNN-Based Link Prediction Performance (Wang et al.
2024), arXiv 2310.04612.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from polypath.errors import InputError
from polypath.graphs import import_graph, planetoid, read_edges
from polypath.recipes.graph_sources import CORA, IMPORTS, Make, check_names, chosen, kept
from polypath.recipes.node_difficulty import CONTROLS, PREDICTORS, Diagnosis, on_graph
from polypath.recipes.node_reports import (
    correlations_table,
    entries,
    figures,
    measured,
    predictors_table,
    shift_table,
    shifted,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, judge
from polypath.training.run import Run

DOMAIN = "graphs"
PAPER = "Topological concentration (2024)"
GRAPHS = (CORA, "partition", IMPORTS)
GCN, REWEIGHTED, _ = PREDICTORS


@dataclass(frozen=True)
class Config:
    """Which graphs are diagnosed, and how predictors are trained on them."""

    seeds: int = 5
    """Splits of each graph, with every predictor on each."""
    graphs: Sequence[str] = ()
    """Which of cora, partition (communities of many densities at one degree) and imports (modules
    of the Python standard library); those that need no download by default, Cora among them where
    data_dir has it."""
    data: Path | None = None
    """A file of edges, two names a line, instead of these."""
    data_dir: Path | None = None
    """A folder of public data sets; the one that POLYPATH_DATA names by default."""
    nodes: int = 2000
    """Nodes of the partition, about."""
    epochs: int = 100
    """Times that every link is seen; the best epoch by validation is kept."""
    dim: int = 128
    """Width of the predictors."""
    rate: float = 3e-3
    """Learning rate."""
    batch: int = 1152
    """Links in a batch, beside as many that are none."""
    alpha: float = 2.0
    """How much edges gain where they are re-weighted, every epoch from the second on."""
    hits: int = 100
    """K of Hits@K, by which the best epoch is chosen; lower it for graphs of few edges."""
    workers: int = 0
    """Splits at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("nodes", 200), ("epochs", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; at least {least} is needed")
        for name in ("dim", "batch", "hits"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        for name in ("rate", "alpha"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}; a positive number is right")
        check_names(self.graphs, GRAPHS)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "graphs": ("partition", "imports"),
        "nodes": 600,
        "epochs": 10,
        "hits": 50,
    }
}


def run(config: Config, run: Run) -> Outcome:
    """Train and diagnose on every graph under every seed; judge the paper's claims."""
    shared = {
        one.name: getattr(config, one.name) for one in fields(Diagnosis) if one.name != "source"
    }
    arms = {
        name: partial(on_graph, Diagnosis(source=path, **shared))
        for name, path in prepare(config, run.folder).items()
    }
    reports = config.epochs * len(PREDICTORS)
    facts = trials(arms, config.seeds, reports, run.folder / "splits", config.workers)
    claims = [claim for name, own in facts.items() for claim in claims_on(name, own)]
    tables = [
        predictors_table(facts),
        *(correlations_table(name, own) for name, own in facts.items()),
        shift_table(facts),
    ]
    return conclude(run, facts, tables, claims, figures(facts))


def prepare(config: Config, folder: Path) -> dict[str, Path | None]:
    """Where each graph is kept, once for all splits; None for one that every seed draws anew."""
    known: dict[str, Make | None] = {
        CORA: partial(planetoid, CORA, config.data_dir),
        "partition": None,
        IMPORTS: import_graph,
    }
    if config.data is not None:
        return kept({config.data.stem: partial(read_edges, config.data)}, folder)
    return kept(chosen(known, config.graphs, config.data_dir), folder)


def claims_on(name: str, facts: list[Facts]) -> list[Claim]:
    """What the paper says of concentration, seed by seed, each a split."""
    none = [0.0] * len(facts)

    def more(what: str, source: str, score: str, than: str, threshold: float = 0.0) -> Claim:
        """Mean correlation over all entries, beside the size of another's."""
        rival = [abs(value) for value in entries(facts, GCN, than)]
        return judge(
            f"{name}: {what} (mean correlation with 26 entries, difference)",
            f"{PAPER}, {source}",
            than,
            entries(facts, GCN, score),
            rival,
            "higher",
            threshold,
        )

    recall = {one: entries(facts, GCN, one, "recall@50") for one in ("TC-test", "degree")}
    few = "fewest shared neighbours"
    return [
        judge(
            f"{name}: TC-test goes with Recall@50 (correlation, at least 0.4)",
            f"{PAPER}, correlations: 0.753 on collab",
            "0.4",
            recall["TC-test"],
            none,
            "higher",
            0.4,
        ),
        judge(
            f"{name}: it does so more than degree, by 0.2 (correlation, difference)",
            f"{PAPER}, correlations",
            "degree",
            recall["TC-test"],
            [abs(value) for value in recall["degree"]],
            "higher",
            0.2,
        ),
        more("TC-train goes with ranks more than degree", "0.168 and -0.087", "TC-train", "degree"),
        more("TC-train does more than density", "0.168 and 0.164", "TC-train", "ego density"),
        more(
            "ATC-train of two layers does more than TC-train",
            "0.211 and 0.166, LightGCN",
            "ATC-train, depth 2",
            "TC-train",
        ),
        judge(
            f"{name}: held out by fewest shared neighbours, TC-test is 0.05 below TC-train "
            "(mean over nodes, difference)",
            f"{PAPER}, distribution shift: 0.217 and 0.498 on collab",
            "TC-train",
            shifted(facts, few, "TC-test"),
            shifted(facts, few, "TC-train"),
            threshold=-0.05,
        ),
        judge(
            f"{name}: random splits have no shift (shared neighbours of test less train links, "
            f"standard errors, mean of {CONTROLS} splits, either way; below 1)",
            "exchangeability, a control",
            "1",
            [abs(one["control"]) for one in facts],
            none,
            threshold=1.0,
        ),
        judge(
            f"{name}: re-weighted edges raise Hits@{facts[0]['k']} (difference)",
            f"{PAPER}, re-weighting",
            GCN,
            measured(facts, REWEIGHTED, "hits"),
            measured(facts, GCN, "hits"),
            "higher",
        ),
    ]
