"""Links told from shared neighbours: NCN and NCNC beside heuristics and graph auto-encoders.

Source: Neural Common Neighbor with Completion for Link Prediction (Wang et al. 2024), arXiv
2302.00890.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from polypath.errors import InputError
from polypath.graphs import import_graph, planetoid, read_edges
from polypath.recipes.graph_sources import CORA, IMPORTS, Make, check_names, chosen, kept
from polypath.recipes.link_arms import (
    COMPLETED,
    COUNTED,
    GAE,
    HEURISTICS,
    KEPT,
    LEARNT,
    PLAIN,
    SHARED,
    SUMMED,
    LinkArm,
    on_links,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.report.figures import Curves
from polypath.report.statistics import series
from polypath.training.run import Run

DOMAIN = "graphs"
PAPER = "NCN (2024)"
GEOMETRIC, SPARSE = "geometric", "geometric, 40 % missing"
GRAPHS = (CORA, GEOMETRIC, SPARSE, IMPORTS)
MISSING = 0.4
PUBLISHED = {SUMMED: (0.8905, 0.0096), COMPLETED: (0.8965, 0.0136)}
"""Hits@100 on Cora, and the standard deviation over ten splits."""

ByGraph = Mapping[str, Mapping[str, list[Facts]]]
"""By graph and by predictor or heuristic, what came out under each seed."""


@dataclass(frozen=True)
class Config:
    """Which graphs' links are predicted, and for how long is trained."""

    seeds: int = 3
    """Splits of each graph, with every predictor on each."""
    graphs: Sequence[str] = ()
    """Which of cora (with the authors' constants), geometric (near points, without features that
    tell), the same with 40 % of its training links missing, and imports (modules of the Python
    standard library); those that need no download by default, and Cora where data_dir has it."""
    data: Path | None = None
    """A file of edges, two names a line, instead of these."""
    data_dir: Path | None = None
    """A folder of public data sets; the one that POLYPATH_DATA names by default."""
    nodes: int = 1500
    """Nodes of the geometric graph."""
    epochs: int = 60
    """Times that each predictor sees every link."""
    hits: int = 100
    """K of Hits@K: of test links, those that score above the K-th best of as many that are none."""
    workers: int = 0
    """Predictors trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("nodes", 100), ("epochs", 1), ("hits", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; at least {least} is needed")
        check_names(self.graphs, GRAPHS)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "graphs": (GEOMETRIC, SPARSE),
        "nodes": 800,
        "epochs": 15,
        "hits": 50,
    }
}


def run(config: Config, run: Run) -> Outcome:
    """Train every predictor on every graph under every seed; judge the paper's claims.

    The first seed's NCN and NCNC of a real graph are saved in models/, for `polypath links`.
    """
    graphs = prepare(config, run.folder)
    work = {
        f"{name}, {task.arm}": partial(on_links, task)
        for name, path in graphs.items()
        for task in tasks(config, name, path, run.folder / "models")
    }
    flat = trials(work, config.seeds, config.epochs, run.folder / "links", config.workers)
    facts = {name: by_arm(name, flat) for name in graphs}
    return conclude(
        run,
        flat,
        [table(name, own, config.hits) for name, own in facts.items()],
        [claim for name in facts for claim in claims_on(name, facts, config.hits)],
        [figure(name, own, config.hits) for name, own in facts.items()],
    )


def prepare(config: Config, folder: Path) -> dict[str, Path | None]:
    """Where each graph is kept, once for all; None for those that every seed draws anew."""
    known: dict[str, Make | None] = {
        CORA: partial(planetoid, CORA, config.data_dir),
        GEOMETRIC: None,
        SPARSE: None,
        IMPORTS: import_graph,
    }
    if config.data is not None:
        return kept({config.data.stem: partial(read_edges, config.data)}, folder)
    return kept(chosen(known, config.graphs, config.data_dir), folder)


def tasks(config: Config, name: str, path: Path | None, models: Path) -> list[LinkArm]:
    """Every predictor, and the heuristics together, on one graph."""
    return [
        LinkArm(
            arm,
            path,
            config.nodes,
            MISSING if name == SPARSE else 0.0,
            config.epochs,
            config.hits,
            CORA if path is not None and name == CORA else None,
            models / f"{name}-{arm.lower()}-0" if path and arm in (SUMMED, COMPLETED) else None,
        )
        for arm in (*LEARNT, "heuristics")
    ]


def by_arm(name: str, flat: Mapping[str, list[Facts]]) -> dict[str, list[Facts]]:
    """What came out on one graph, with each heuristic by its name."""
    found = {arm: flat[f"{name}, {arm}"] for arm in LEARNT}
    own = flat[f"{name}, heuristics"]
    return {**{one: [facts[one] for facts in own] for one in HEURISTICS}, **found}


def hits(facts: list[Facts]) -> list[float]:
    """By seed."""
    return [one["hits"] for one in facts]


def table(name: str, facts: Mapping[str, list[Facts]], k: int) -> Table:
    """What each finds, of which links, on one graph."""
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        mean, low, high = estimate(hits(own))
        row = [arm, mean, "" if low is None else f"{low:.3f} … {high:.3f}"]
        row += [_mean([one["by_shared"][place] for one in own]) for place in range(len(SHARED))]
        row += [_mean([one.get("train") for one in own]), _mean([one.get("epoch") for one in own])]
        rows.append(row)
    first = next(iter(facts.values()))
    shares = [fmean(one["shares"][place] for one in first) for place in range(len(SHARED))]
    told = ", ".join(f"{share:.0%}" for share in shares)
    return Table(
        f"Links of {name}",
        [
            *("way", f"Hits@{k}", "95 % interval"),
            *(f"{count} shared" for count in SHARED[:-1]),
            *(f"{SHARED[-1]} or more", "training links", "epoch"),
        ],
        rows,
        note=f"Of test links, means over seeds. By how many neighbours their ends share in the "
        f"training graph ({told} of the links), beside the same links that are none. Training "
        "links: of a batch of these, as it was seen in training. Epoch: the best by validation.",
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def figure(name: str, facts: Mapping[str, list[Facts]], k: int) -> Curves:
    """Validation by epoch."""
    lines = []
    for arm in LEARNT:
        curves = [one["valid"] for one in facts[arm]]
        lines.append(series(arm, range(1, len(curves[0]) + 1), curves))
    return Curves(
        f"Training on {name}",
        "epoch",
        f"Hits@{k} of links to validate on",
        lines,
        "Bands: 95 % intervals of the mean over seeds.",
    )


def claims_on(name: str, facts: ByGraph, k: int) -> list[Claim]:
    """What the paper, and the specification's experiment, say of a graph, seed by seed."""
    own = facts[name]

    def better(what: str, source: str, arm: str, than: str, threshold: float = 0.0) -> Claim:
        return judge(
            f"{name}: {what} (Hits@{k}, difference)",
            f"{PAPER}, {source}",
            than,
            hits(own[arm]),
            hits(own[than]),
            "higher",
            threshold,
        )

    leak = [
        judge(
            f"{name}: where edges of a batch stay in the graph, its links are told better "
            f"(Hits@{k} of training links, difference)",
            f"{PAPER}, ablation of target link removal",
            SUMMED,
            [one["train"] for one in own[KEPT]],
            [one["train"] for one in own[SUMMED]],
            "higher",
        ),
        better("and test links are told worse", "ablation of target link removal", SUMMED, KEPT),
    ]
    if name == CORA:
        return [*_on_cora(own, better), *leak]
    if name in (GEOMETRIC, SPARSE):
        return [*_on_geometric(name, facts, better), *leak]
    return [
        better("shared neighbours add to a graph auto-encoder", "table 1", SUMMED, GAE),
        better("completion adds to them", "table 1", COMPLETED, SUMMED),
        *leak,
    ]


Better = Callable[..., Claim]


def _on_cora(own: Mapping[str, list[Facts]], better: Better) -> list[Claim]:
    none = [0.0] * len(own[GAE])
    near = [abs(a - b) for a, b in zip(hits(own[SUMMED]), hits(own[GAE]), strict=True)]
    return [
        *(
            judge(
                f"cora: {arm} reaches the published mean less two standard deviations (Hits@100)",
                f"{PAPER}, table 1: {mean:.2%} ± {spread:.2%}",
                f"{mean - 2 * spread:.2%}",
                hits(own[arm]),
                none,
                "higher",
                mean - 2 * spread,
            )
            for arm, (mean, spread) in PUBLISHED.items()
        ),
        better("NCN finds 40 points more than RA", "table 1: 48", SUMMED, "RA", 0.4),
        better("it finds 10 points more than an untuned GCN", "table 1: 22", SUMMED, PLAIN, 0.1),
        judge(
            "cora: a graph auto-encoder of the same head and tuning does as well "
            "(Hits@100, how far apart; below 0.02)",
            f"{PAPER}, ablation: 89.01 and 89.05",
            GAE,
            near,
            none,
            threshold=0.02,
        ),
        better("completion adds to NCN", "table 1: 0.6 points", COMPLETED, SUMMED),
    ]


def _on_geometric(name: str, facts: ByGraph, better: Better) -> list[Claim]:
    source = "small experiment: features without a signal"
    found = [
        better(f"{arm} finds 20 points more than a graph auto-encoder", source, arm, GAE, 0.2)
        for arm in (COUNTED, SUMMED, COMPLETED)
    ]
    if name == GEOMETRIC:
        return found
    found.append(better("completion adds to NCN", "figure of incompleteness", COMPLETED, SUMMED))
    if GEOMETRIC in facts:
        sparse, whole = (gains(facts[graph]) for graph in (SPARSE, GEOMETRIC))
        found.append(
            judge(
                f"{name}: it adds more than where none is missing (gain in Hits, difference)",
                f"{PAPER}, figure of incompleteness",
                GEOMETRIC,
                sparse,
                whole,
                "higher",
            )
        )
    return found


def gains(facts: Mapping[str, list[Facts]]) -> list[float]:
    """What completion adds to Hits of NCN, by seed."""
    return [a - b for a, b in zip(hits(facts[COMPLETED]), hits(facts[SUMMED]), strict=True)]
