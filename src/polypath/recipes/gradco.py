"""Orbit adjacencies beside random walks: roles, classes and links from a graph's edges alone.

Source: GRADCO, Graphlets correct for the topological information missed by random walks, arXiv
2405.14194.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import NamedGraph, import_graph, planetoid, read_edges
from polypath.graphs.files import find
from polypath.graphs.graphlets import WALK_VISIBLE
from polypath.recipes.graph_sources import CORA, IMPORTS, Make, check_names, chosen, kept
from polypath.recipes.orbit_tasks import (
    CN,
    LENGTHS,
    LINK_FEATURES,
    ONCE,
    ORBITS,
    SEEN,
    UNSEEN,
    WALKS,
    on_classes,
    on_cost,
    on_gadgets,
    on_links,
    walk,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.training.run import Run

DOMAIN = "graphs"
PAPER = "GRADCO (2024)"
GRAPHS = (CORA, IMPORTS)
SMALLEST = 8
"""Modules that a package of the library needs to be a class."""


@dataclass(frozen=True)
class Config:
    """Which graphs are embedded, classified and completed."""

    seeds: int = 5
    """Graphs of gadgets, folds of classes and splits of links."""
    graphs: Sequence[str] = ()
    """Which of cora and imports (modules of the Python standard library, with their packages as
    classes); imports by default, and Cora where data_dir has it."""
    data: Path | None = None
    """A file of edges, two names a line, instead of these."""
    classes: Path | None = None
    """A file of the classes of its nodes, a name and a class a line; without, links alone are
    predicted on it."""
    data_dir: Path | None = None
    """A folder of public data sets; the one that POLYPATH_DATA names by default."""
    skeleton: int = 120
    """Gadgets in each graph of roles, an even number."""
    dim: int = 64
    """Columns of an embedding."""
    workers: int = 0
    """Trials at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("skeleton", 20), ("dim", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; at least {least} is needed")
        if self.skeleton % 2:
            raise InputError(f"skeleton={self.skeleton}; an even number is right")
        if self.classes is not None and self.data is None:
            raise InputError("classes are of the nodes of data, which is not given")
        check_names(self.graphs, GRAPHS)


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "graphs": ("imports",), "skeleton": 40, "dim": 32}
}


def run(config: Config, run: Run) -> Outcome:
    """Embed, classify, predict links and count under every seed; judge the paper's claims."""
    graphs = prepare(config, run.folder)
    told = {"gadgets": partial(on_gadgets, config.skeleton, config.dim)} | {
        f"classes of {name}": partial(on_classes, path, config.dim)
        for name, (path, classes) in graphs.items()
        if classes
    }
    links = {f"links of {name}": partial(on_links, path) for name, (path, _) in graphs.items()}
    costs = {f"cost of {name}": partial(on_cost, path) for name, (path, _) in graphs.items()}
    folder, reports = run.folder / "trials", len(ONCE) + len(LENGTHS)
    told_facts = trials(told, config.seeds, reports, folder, config.workers)
    link_facts = trials(links, config.seeds, 1, folder, config.workers)
    cost_facts = trials(costs, config.seeds, 1, folder, 1)  # timed, with nothing beside it
    claims = [
        *(claim for task, own in told_facts.items() for claim in claims_on_embeddings(task, own)),
        *(claim for task, own in link_facts.items() for claim in claims_on_links(task, own)),
        *(claim for task, own in cost_facts.items() for claim in claims_on_counts(task, own)),
    ]
    tables = [
        chosen_table(told_facts),
        embeddings_table(told_facts),
        links_table(link_facts),
        cost_table(cost_facts),
    ]
    return conclude(run, told_facts | link_facts | cost_facts, tables, claims)


def prepare(config: Config, folder: Path) -> dict[str, tuple[Path, bool]]:
    """Where each graph is kept, once for all trials, and whether its nodes have classes."""
    if config.data is not None:
        sources: dict[str, Make | None] = {
            config.data.stem: partial(own_graph, config.data, config.classes)
        }
    else:
        known: dict[str, Make | None] = {
            CORA: partial(planetoid, CORA, config.data_dir),
            IMPORTS: packages,
        }
        sources = chosen(known, config.graphs, config.data_dir)
    classes = config.data is None or config.classes is not None
    paths = kept(sources, folder).items()
    return {name: (path, classes) for name, path in paths if path is not None}


def packages() -> NamedGraph:
    """The import graph; classes are packages of some size, -1 for modules of none."""
    graph = import_graph()
    return replace(graph, y=numbered([name.partition(".")[0] for name in graph.names], SMALLEST))


def own_graph(data: Path, classes: Path | None) -> NamedGraph:
    """A file's graph, with the classes of another file; -1 for nodes that it does not name.

    Raises InputError, with the line, for a name that the graph does not have, and for less than two
    classes of ten nodes.
    """
    graph = read_edges(data)
    if classes is None:
        return graph
    ids = {name: place for place, name in enumerate(graph.names)}
    names = [""] * len(ids)
    try:
        text = classes.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{classes}: cannot be read: {error}") from error
    for number, cells in enumerate(csv.reader(text.splitlines()), 1):
        if not cells:
            continue
        if len(cells) < 2 or not cells[1].strip():
            raise InputError(f"{classes}, line {number}: a name and a class are right")
        names[find(ids, cells[0].strip(), f"{classes}, line {number}")] = cells[1].strip()
    y = numbered(names, 10)
    if int(y.max()) < 1:
        raise InputError(f"{classes}: fewer than two classes have ten nodes")
    return replace(graph, y=y)


def numbered(names: Sequence[str], least: int) -> Tensor:
    """(N,) int64: classes that so many nodes have, in the order of their names; -1 for the rest."""
    counts = Counter(name for name in names if name)
    kept = sorted(name for name, count in counts.items() if count >= least)
    places = {name: place for place, name in enumerate(kept)}
    return torch.tensor([places.get(name, -1) for name in names])


def column(facts: Sequence[Facts], *names: str) -> list[float]:
    """A number by seed, by its names from the outside in."""
    found: Sequence[Any] = facts
    for name in names:
        found = [one[name] for one in found]
    return list(found)


def share_unseen(facts: Facts) -> float:
    """Of the folds of a trial, those on which an orbit that walks do not see was the best."""
    names = facts["names"][ORBITS]
    return fmean(ONCE[name] not in WALK_VISIBLE for name in names)


def _means(facts: Sequence[Facts], part: str, name: str) -> list[Any]:
    mean, low, high = estimate(column(facts, part, name))
    return [mean, "" if low is None else f"{low:.3f} … {high:.3f}"]


def chosen_table(facts: Mapping[str, list[Facts]]) -> Table:
    """What was chosen on validation folds, and how it did on test folds."""
    rows: list[list[Any]] = []
    for task, own in facts.items():
        for kind in (ORBITS, UNSEEN, SEEN, WALKS):
            names = Counter(name for one in own for name in one["names"][kind])
            often = ", ".join(f"{name} ({count})" for name, count in names.most_common(3))
            rows.append([task, kind, *_means(own, "chosen", kind), often])
        rows.append([task, f"{walk(3)} steps, as published", *_means(own, "test", walk(3)), ""])
    return Table(
        "Nodes told apart by what is best on validation folds",
        ["task", "embedding", "macro-F1", "95 % interval", "chosen most often"],
        rows,
        note="Logistic regression on embeddings of one matrix: positive pointwise mutual "
        "information, factorised. On each of five test folds with the matrix that was best on "
        "another fold. Folds of gadgets share none of them. Means over seeds.",
    )


def embeddings_table(facts: Mapping[str, list[Facts]]) -> Table:
    """Every matrix on its own."""
    rows: list[list[Any]] = []
    for name in facts["gadgets"][0]["test"]:
        seen = "" if name not in ONCE else "yes" if ONCE[name] in WALK_VISIBLE else "no"
        rows.append([name, seen, *(fmean(column(own, "test", name)) for own in facts.values())])
    return Table(
        "Nodes told apart by each matrix",
        ["matrix", "walks see it", *facts],
        rows,
        note="Macro-F1 on test folds, means over folds and seeds. An orbit adjacency with o1 ≠ o2 "
        "is taken with its transpose.",
    )


def links_table(facts: Mapping[str, list[Facts]]) -> Table:
    """Links by the counts of a pair."""
    names = [name for name in LINK_FEATURES if name not in ONCE]
    names += [name for name in LINK_FEATURES if name in ONCE]
    rows = [
        [name, *(cell for own in facts.values() for cell in _means(own, "test", name))]
        for name in names
    ]
    columns = [title for task in facts for title in (task, f"{task}, interval")]
    return Table(
        "Links predicted",
        ["counts of a pair", *columns],
        rows,
        note="AUC on 20 % of the links and as many other pairs, none of them in the graph that is "
        "counted; by logistic regression on the logarithms of counts, learnt from training links "
        "that are taken out too. Walks: A² and A³. Means over seeds.",
    )


def cost_table(facts: Mapping[str, list[Facts]]) -> Table:
    """What all 28 cost."""
    rows: list[list[Any]] = []
    for task, own in facts.items():
        sizes = [own[0][name] for name in ("nodes", "edges", "entries")]
        rows.append([task.removeprefix("cost of "), *sizes, min(one["took"] for one in own)])
    return Table(
        "All 28 orbit adjacencies",
        ["graph", "nodes", "edges", "entries", "seconds"],
        rows,
        note="Entries other than 0. The shortest time of all seeds.",
    )


def claims_on_embeddings(task: str, facts: list[Facts]) -> list[Claim]:
    """What the paper says of orbits beside walks, seed by seed."""
    told = "(macro-F1 on test folds, difference)"
    unseen = column(facts, "chosen", UNSEEN)
    return [
        judge(
            f"{task}: the best orbit that walks do not see is not worse than walks by 0.02 {told}",
            f"{PAPER}, embeddings",
            walk(3),
            unseen,
            column(facts, "test", walk(3)),
            "higher",
            -0.02,
        ),
        judge(
            f"{task}: it is better than the best walks {told}",
            f"{PAPER}, abstract",
            WALKS,
            unseen,
            column(facts, "chosen", WALKS),
            "higher",
        ),
        judge(
            f"{task}: the best orbit of all is better than the best walks {told}",
            f"{PAPER}, abstract",
            WALKS,
            column(facts, "chosen", ORBITS),
            column(facts, "chosen", WALKS),
            "higher",
        ),
        judge(
            f"{task}: the best orbit is often one that walks do not see (share of folds, above the "
            "half that chance would give)",
            f"{PAPER}, abstract",
            "0.5",
            [share_unseen(one) for one in facts],
            [0.0] * len(facts),
            "higher",
            0.5,
        ),
    ]


def claims_on_links(task: str, facts: list[Facts]) -> list[Claim]:
    """What counts of a pair add, seed by seed, each a split."""
    orbits = column(facts, "test", ORBITS)

    def higher(what: str, ours: list[float], than: str, threshold: float = 0.0) -> Claim:
        theirs = column(facts, "test", than)
        said = f"{task}: {what} (AUC on test links, difference)"
        return judge(said, "this project's question", than, ours, theirs, "higher", threshold)

    chosen = [one["test"][one["chosen"]] for one in facts]
    return [
        higher("counts at two hops and three are not lower by 0.005", orbits, CN, -0.005),
        higher("they are higher than common neighbours", orbits, CN),
        higher("they are higher than walks of two steps and three", orbits, WALKS),
        higher("the best of them on validation links is higher", chosen, CN),
    ]


def claims_on_counts(task: str, facts: list[Facts]) -> list[Claim]:
    """That walks see mixtures of 13, exactly; and what all cost."""
    none = [0.0] * len(facts)
    return [
        judge(
            f"{task}: A, A² and A³ are mixtures of 13 of the 28 (largest entry apart, below 0.5)",
            f"{PAPER}, theorem; mixture by this project",
            "0.5",
            column(facts, "apart"),
            none,
            threshold=0.5,
        ),
        judge(
            f"{task}: all 28 in less than a minute (seconds)",
            f"{PAPER}: minutes for 20,000 nodes",
            "60",
            column(facts, "took"),
            none,
            threshold=60.0,
        ),
    ]
