"""Tables and figures of node scores beside ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from polypath.recipes.node_difficulty import DEPTHS, PREDICTORS
from polypath.recipes.trials import Facts
from polypath.report import Table, estimate
from polypath.report.figures import Curves, Figure, HeatMap, HeatMaps
from polypath.report.statistics import series

GCN = PREDICTORS[0]
BANDS = "Bands: 95 % intervals of the mean over seeds."


def entries(facts: Sequence[Facts], kind: str, score: str, entry: str = "") -> list[float]:
    """A score's correlation by seed, with one entry or the mean of all."""
    every = [one["correlations"][kind][score] for one in facts]
    return [own[entry] if entry else fmean(own.values()) for own in every]


def measured(facts: Sequence[Facts], kind: str, name: str) -> list[float]:
    """A measure of a predictor by seed."""
    return [one["measured"][kind][name] for one in facts]


def shifted(facts: Sequence[Facts], split: str, name: str) -> list[float]:
    """What a split shows of its shift, by seed."""
    return [one["shift"][split][name] for one in facts]


def spread(values: list[float], digits: int = 3) -> str:
    """A mean with its interval."""
    mean, low, high = estimate(values)
    if mean is None:
        return ""
    told = "" if low is None else f" ({low:.{digits}f} … {high:.{digits}f})"
    return f"{mean:.{digits}f}{told}"


def predictors_table(facts: Mapping[str, list[Facts]]) -> Table:
    """How good predictors are, on pairs and on nodes."""
    rows: list[list[Any]] = []
    hits = f"Hits@{next(iter(facts.values()))[0]['k']}"
    for name, own in facts.items():
        for kind in PREDICTORS:
            nodes = [fmean(measured(own, kind, one)) for one in ("mrr", "hit@10", "recall@50")]
            epoch = fmean(measured(own, kind, "epoch"))
            rows.append([name, kind, spread(measured(own, kind, "hits")), *nodes, epoch])
    return Table(
        "Link predictors on random splits",
        ["graph", "predictor", hits, "MRR of nodes", "Hit@10", "Recall@50", "epoch"],
        rows,
        note=f"On links to test. {hits} among as many drawn pairs, with the 95 % interval; the "
        "others rank all nodes for each node with such a link, and are means over nodes. Epoch: "
        "the best by validation. Means over seeds.",
    )


def correlations_table(name: str, facts: list[Facts]) -> Table:
    """What goes along with ranks on a graph."""
    first = facts[0]
    rows: list[list[Any]] = []
    for score in first["correlations"][GCN]:
        row: list[Any] = [score, spread(entries(facts, GCN, score))]
        row += [fmean(entries(facts, GCN, score, entry)) for entry in ("recall@50", "mrr")]
        row += [fmean(entries(facts, kind, score)) for kind in PREDICTORS[1:]]
        rows.append(row)
    return Table(
        f"What goes along with how nodes' links rank: {name}",
        ["node score", "gcn, 26 entries", "Recall@50", "MRR", *PREDICTORS[1:]],
        rows,
        note=f"{first['nodes']} nodes, {first['edges']} edges. Pearson's correlations over nodes "
        "with a link to test; the mean over 26 entries (Recall, Precision, F1, NDCG and Hit at 5, "
        "10, 20, 50 and 100, and MRR) with its 95 % interval, and two entries. Means over seeds.",
    )


def shift_table(facts: Mapping[str, list[Facts]]) -> Table:
    """Concentration and shared neighbours on both kinds of splits."""
    columns = ("TC-train", "TC-val", "TC-test", "shared, train", "shared, test", "gap")
    rows: list[list[Any]] = [
        [name, split, *(fmean(shifted(own, split, column)) for column in columns)]
        for name, own in facts.items()
        for split in own[0]["shift"]
    ]
    return Table(
        "Shift between links to train on and links to test",
        ["graph", "split", *columns],
        rows,
        note="Concentration: mean over nodes with a link to test. Shared: neighbours that the ends "
        "of a link share. Gap: test less train, in standard errors. A random split has no shift; "
        "concentration differs there by its normaliser alone. Means over seeds.",
    )


def figures(facts: Mapping[str, list[Facts]]) -> list[Figure]:
    """The paper's radar as a heat map, ranks by fifths, and approximation by depth."""
    seen = next(iter(facts.values()))[0]["correlations"][GCN]
    names, columns = list(seen), list(next(iter(seen.values())))
    maps = {
        name: HeatMap(
            f"Node scores and how links rank: {name}",
            names,
            columns,
            [[fmean(entries(own, GCN, score, one)) for one in columns] for score in names],
            y="node score",
        )
        for name, own in facts.items()
    }
    found: list[Figure] = [HeatMaps("Correlations with all entries, gcn", "graph", maps)]
    for name, own in facts.items():
        found += [fifths(name, own), depths(name, own)]
    return found


def fifths(name: str, facts: list[Facts]) -> Curves:
    """How well links rank from the lowest to the highest fifth of nodes by a score."""
    every = {score: [one["strata"][score] for one in facts] for score in facts[0]["strata"]}
    return Curves(
        f"Recall@50 by fifths of nodes: {name}",
        "fifth by the score, from the lowest",
        "mean Recall@50 of gcn",
        [series(score, [1, 2, 3, 4, 5], values) for score, values in every.items()],
        f"A fifth is empty where many nodes score the same. {BANDS}",
    )


def depths(name: str, facts: list[Facts]) -> Curves:
    """How approximate concentration goes along with ranks as it gets deeper."""
    x, lines = [float(depth) for depth in DEPTHS], []
    for part in ("train", "test"):
        deep = [entries(facts, GCN, f"ATC-{part}, depth {depth}") for depth in DEPTHS]
        by_seed = [list(one) for one in zip(*deep, strict=True)]
        exact = [[value] * len(x) for value in entries(facts, GCN, f"TC-{part}")]
        lines += [series(f"ATC-{part}", x, by_seed), series(f"TC-{part}", x, exact)]
    return Curves(
        f"Approximate concentration by depth: {name}",
        "layers",
        "mean correlation with 26 entries, gcn",
        lines,
        f"TC is exact, of depth 1. {BANDS}",
    )
