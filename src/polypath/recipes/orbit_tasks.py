"""What orbit adjacencies are good for, under one seed: roles, classes and links from topology.

Source: GRADCO (arXiv 2405.14194), experiments; link prediction is this project's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import networkx as nx
import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from polypath.graphs import Adjacency, LinkSplit, sample_negatives, split_links, undirected
from polypath.graphs.graphlets import (
    ORBIT_PAIRS,
    WALK_VISIBLE,
    OrbitPair,
    embed,
    orbit_adjacencies,
    pair_orbits,
    walk_cooccurrence,
)
from polypath.graphs.heuristics import to_scipy
from polypath.recipes.graph_sources import read
from polypath.recipes.trials import Facts
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter

FOLDS = 5
LENGTHS = (1, 2, 3)
"""Steps of walks."""

SEEN = "orbits that walks see"
UNSEEN = "orbits that walks do not see"
ORBITS = "all orbits"
WALKS = "walks"
CN = "common neighbours"

APART = tuple(pair for pair in ORBIT_PAIRS if pair[0] > 1)


def name_of(pair: OrbitPair) -> str:
    """As "4–5, hop 2"."""
    return f"{pair[1]}–{pair[2]}, hop {pair[0]}"


ONCE = {name_of(pair): pair for pair in ORBIT_PAIRS if pair[1] <= pair[2]}
"""One of each two transposes: embeddings are of M + Mᵀ, which both share."""


def gadgets(skeleton: int, seed: int) -> tuple[Adjacency, Tensor, Tensor]:
    """A random 3-regular graph, each node with a claw (class 0) or a diamond (1) attached to it.

    Gives the graph, the class of every node, and which gadget it belongs to. The centre of a claw,
    or an end of a diamond's chord, is next to the gadget's node of the skeleton.
    """
    edges = [tuple(edge) for edge in nx.random_regular_graph(3, skeleton, seed=seed).edges]
    kinds = torch.arange(skeleton) % 2
    kinds = kinds[torch.randperm(skeleton, generator=torch.Generator().manual_seed(seed))]
    shapes = ([(0, 1), (0, 2), (0, 3)], [(0, 1), (0, 2), (0, 3), (1, 2), (2, 3)])
    for node, kind in enumerate(kinds.tolist()):
        first = skeleton + 4 * node
        edges.append((node, first))
        edges += [(first + a, first + b) for a, b in shapes[kind]]
    graph = Adjacency.of(undirected(torch.tensor(edges).T, 5 * skeleton))
    own = torch.cat([torch.arange(skeleton), torch.arange(skeleton).repeat_interleave(4)])
    return graph, kinds[own], own


def load(path: Path) -> tuple[Adjacency, Tensor | None]:
    """The graph that a recipe has kept, and its classes where it has some; -1 is no class."""
    graph = read(path)
    return Adjacency.of(graph), graph.y


def on_gadgets(skeleton: int, dim: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Tell the gadgets of a new graph apart, whose folds have different gadgets."""
    graph, labels, own = gadgets(skeleton, seed)
    return classified(graph, labels, own, dim, seed, reporter)


def on_classes(path: Path, dim: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Tell the classes of a graph's nodes from its edges alone, under new folds."""
    graph, labels = load(path)
    assert labels is not None, "a graph with classes"
    return classified(graph, labels, torch.arange(len(labels)), dim, seed, reporter)


def classified(
    graph: Adjacency, labels: Tensor, groups: Tensor, dim: int, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Embed by every orbit adjacency and by walks, fit, and choose on validation folds.

    test: macro-F1 by embedding. chosen: by kind of embedding, macro-F1 of those that were best on
    each validation fold. names: by kind, which these were.
    """
    began = time.perf_counter()
    dim = min(dim, graph.num_nodes - 1)
    orbits = orbit_adjacencies(graph)
    embeddings = {name: embed(orbits[pair], dim, seed) for name, pair in ONCE.items()}
    for length in LENGTHS:
        embeddings[walk(length)] = embed(walk_cooccurrence(graph, length), dim, seed)
    folds = folded(labels, groups, seed)
    scores = {}
    for name, embedding in embeddings.items():
        scores[name] = rotated(embedding.numpy(), labels.numpy(), folds)
        reporter.advance(1 - fmean(test for _, test in scores[name]), 0.0)
        if reporter.stop():
            raise Interrupted
    kinds = {
        SEEN: [name for name, pair in ONCE.items() if pair in WALK_VISIBLE],
        UNSEEN: [name for name, pair in ONCE.items() if pair not in WALK_VISIBLE],
        ORBITS: list(ONCE),
        WALKS: [walk(length) for length in LENGTHS],
    }
    names = {kind: best(scores, own) for kind, own in kinds.items()}
    chosen = {
        kind: fmean(scores[name][fold][1] for fold, name in enumerate(own))
        for kind, own in names.items()
    }
    facts = {
        "test": {name: fmean(test for _, test in own) for name, own in scores.items()},
        "chosen": chosen,
        "names": names,
        "seconds": time.perf_counter() - began,
    }
    line = f"{UNSEEN} {chosen[UNSEEN]:.3f}, {WALKS} {chosen[WALKS]:.3f}"
    return facts, line


def walk(length: int) -> str:
    """What an embedding of walks is called."""
    return f"walks of {length}"


def folded(labels: Tensor, groups: Tensor, seed: int) -> np.ndarray:
    """(N,) the fold of each node with a class, -1 of others; groups stay together."""
    own = np.flatnonzero(labels.numpy() >= 0)
    cut = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed)
    found = np.full(len(labels), -1)
    for fold, (_, held) in enumerate(cut.split(own, labels[own], groups[own])):
        found[own[held]] = fold
    return found


def rotated(x: np.ndarray, y: np.ndarray, folds: np.ndarray) -> list[tuple[float, float]]:
    """Macro-F1 on a validation fold and on a test fold, for each fold in turn as the latter.

    Validated on the next fold by a fit to the other three, then tested by a fit to all four.
    """

    def score(train: np.ndarray, held: np.ndarray) -> float:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        found = model.fit(x[train], y[train]).predict(x[held])
        return float(f1_score(y[held], found, average="macro", zero_division=0))

    found = []
    for fold in range(FOLDS):
        test, valid = folds == fold, folds == (fold + 1) % FOLDS
        rest = (folds >= 0) & ~test
        found.append((score(rest & ~valid, valid), score(rest, test)))
    return found


def best(scores: Mapping[str, Sequence[tuple[float, float]]], names: Sequence[str]) -> list[str]:
    """For each fold, the name that is best on its validation fold."""
    return [max(names, key=lambda name: scores[name][fold][0]) for fold in range(FOLDS)]


def on_links(path: Path, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Predict links that the graph has not: 70 % to train, 10 % to validate, 20 % to test.

    What is learnt from are training links that are taken out of the graph, as the others are.
    valid, test: AUC by features. chosen: the single orbit that is best on validation links.
    """
    began = time.perf_counter()
    graph, _ = load(path)
    generator = torch.Generator().manual_seed(seed)
    split = split_links(graph, generator, valid=0.1, test=0.2)
    hidden = split.train[:, : split.valid.shape[1]]
    own = torch.cat([hidden, sample_negatives(split.graph, hidden.shape[1], generator)], 1)
    parts = {
        "train": counted(split.graph.without(hidden), own),
        "valid": counted(split.graph, torch.cat([split.valid, split.valid_negatives], 1)),
        "test": counted(split.graph, torch.cat([split.test, split.test_negatives], 1)),
    }
    found: dict[str, dict[str, float]] = {"valid": {}, "test": {}}
    for name, features in LINK_FEATURES.items():
        for part, score in fitted(features, parts, split, hidden.shape[1]).items():
            found[part][name] = score
    singles = [name for name in LINK_FEATURES if name in ONCE]
    pick = max(singles, key=found["valid"].__getitem__)
    test = found["test"]
    reporter.advance(1 - test[ORBITS], 0.0)
    facts = {**found, "chosen": pick, "seconds": time.perf_counter() - began}
    return facts, f"AUC {test[ORBITS]:.3f}, {CN} {test[CN]:.3f}"


Counts = Mapping[OrbitPair, np.ndarray]


def counted(graph: Adjacency, pairs: Tensor) -> Counts:
    """(B,) of each orbit adjacency at two hops and three, for pairs that are no edges."""
    return dict(zip(APART, pair_orbits(graph, pairs, APART).double().numpy().T, strict=True))


def _either(pair: OrbitPair) -> Callable[[Counts], list[np.ndarray]]:
    """A pair's entries in both orders: a link has no direction."""
    hop, row, column = pair
    return lambda counts: [
        counts[pair] if row == column else counts[pair] + counts[hop, column, row]
    ]


def _walked(counts: Counts) -> list[np.ndarray]:
    """A² and A³ of pairs that are no edges."""
    pendants = counts[2, 9, 10] + counts[2, 10, 9]
    return [counts[2, 1, 1], counts[3, 4, 4] + pendants + 2 * counts[2, 12, 12]]


_SINGLES = {name: _either(pair) for name, pair in ONCE.items() if pair[0] > 1}

LINK_FEATURES: dict[str, Callable[[Counts], list[np.ndarray]]] = {
    CN: lambda counts: [counts[2, 1, 1]],
    ORBITS: lambda counts: [x for single in _SINGLES.values() for x in single(counts)],
    WALKS: _walked,
    **_SINGLES,
}


def fitted(
    features: Callable[[Counts], list[np.ndarray]],
    parts: Mapping[str, Counts],
    split: LinkSplit,
    hidden: int,
) -> dict[str, float]:
    """AUC on validation and test links, of a logistic regression on logarithms of counts."""
    x = {part: np.log1p(np.stack(features(counts), 1)) for part, counts in parts.items()}
    positives = {"train": hidden, "valid": split.valid.shape[1], "test": split.test.shape[1]}
    y = {part: np.arange(len(own)) < positives[part] for part, own in x.items()}
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    model.fit(x["train"], y["train"])
    return {
        part: float(roc_auc_score(y[part], model.decision_function(x[part])))
        for part in ("valid", "test")
    }


def on_cost(path: Path, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Count all 28 on the recipe's graph, and hold powers of its adjacency against their mixture.

    apart: the largest entry off the diagonal in which A² or A³ is not the mixture. seen: how many
    of the 28 are in it.
    """
    graph, _ = load(path)
    orbit_adjacencies(graph)  # what has to be compiled is not timed
    began = time.perf_counter()
    orbits = orbit_adjacencies(graph)
    took = time.perf_counter() - began
    twice = {(1, 3, 3), (2, 12, 12), (1, 14, 14)}
    square = orbits[2, 1, 1] + orbits[1, 3, 3]
    mixture = WALK_VISIBLE - {(2, 1, 1)}
    cube = sum((1 + (pair in twice)) * orbits[pair] for pair in sorted(mixture))
    a = to_scipy(graph)
    apart = 0.0
    for power, wanted in ((a @ a, square), (a @ a @ a, cube)):
        power.setdiag(0)
        apart = max(apart, float(abs(power - wanted).max()))
    reporter.advance(apart, 0.0)
    facts = {
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "entries": sum(matrix.nnz for matrix in orbits.values()),
        "took": took,
        "apart": apart,
        "seen": len(mixture | {(2, 1, 1)}),
        "seconds": took,
    }
    return facts, f"{took:.3f} s"
