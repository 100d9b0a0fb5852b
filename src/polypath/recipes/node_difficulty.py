"""Which nodes' links are hard: graphs, splits, predictors and node scores, under one seed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import networkx as nx
import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import Adjacency, LinkSplit, sample_negatives, split_links, undirected
from polypath.graphs.concentration import (
    approximate_topological_concentration,
    ego_density,
    strata,
    topological_concentration,
)
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.heuristics import shared_neighbours, to_scipy
from polypath.graphs.ncn import NCN, NCNConfig
from polypath.graphs.node_ranking import NodeRanking, rank_nodes
from polypath.graphs.products import symmetric
from polypath.graphs.reweighting import ReweightedEncoder, Reweighting
from polypath.recipes.graph_sources import read
from polypath.recipes.trials import Facts
from polypath.training.links import LinkFit, LinkTask, LinkTraining, fit_links
from polypath.training.parts import Reporter

PREDICTORS = ("gcn", "gcn, re-weighted", "ncn")
DEPTHS = range(1, 6)
"""Depths of approximate concentration."""
CONTROLS = 20
"""Random splits on which exchangeability is tried."""
SMALLEST, SHARE, INSIDE, OUTSIDE = 12, 12, 8.0, 2.0
"""Of a planted partition: the smallest community, how many sizes there are, and mean degrees."""


@dataclass(frozen=True)
class Diagnosis:
    """What is trained on which graph.

    source: a file with the graph, or None for a planted partition of about so many nodes, drawn
    under every seed. hits: K of Hits@K, by which the best epoch is chosen.
    """

    source: Path | None
    nodes: int
    epochs: int
    dim: int
    rate: float
    batch: int
    alpha: float
    hits: int

    def graph(self, seed: int) -> tuple[Adjacency, Tensor | None]:
        """A graph, and its features where it has some."""
        if self.source is None:
            return planted_partition(self.nodes, seed), None
        graph = read(self.source)
        return Adjacency.of(graph), graph.x


def planted_partition(nodes: int, seed: int) -> Adjacency:
    """Communities of many sizes, in which a node has equally many neighbours.

    So density inside varies from community to community, and degrees hardly do.
    """
    sizes: list[int] = []
    for size in np.geomspace(SMALLEST, max(SMALLEST, nodes / 10), SHARE).round().astype(int):
        sizes += [int(size)] * max(1, round(nodes / SHARE / size))
    chances = np.full((len(sizes), len(sizes)), OUTSIDE / sum(sizes))
    np.fill_diagonal(chances, [INSIDE / (size - 1) for size in sizes])
    drawn = nx.stochastic_block_model(sizes, chances, seed=seed, sparse=True)
    return Adjacency.of(undirected(torch.tensor(list(drawn.edges)).T, sum(sizes)))


def split_by_overlap(
    graph: Adjacency, generator: torch.Generator, valid: float = 0.1, test: float = 0.2
) -> LinkSplit:
    """Each node's links that share the fewest neighbours are tested, the next ones validated on.

    A link's place among the links of either end, by shared neighbours of both, is averaged over its
    ends; ties are broken by chance.
    """
    sources = graph.sources
    shared = shared_neighbours(graph, graph.edge_index)
    noise = torch.rand(len(sources), generator=generator, dtype=torch.float64)
    order = np.lexsort((noise.numpy(), shared.numpy(), sources.numpy()))
    position = torch.arange(len(sources)) - graph.starts[:-1][sources] + 0.5
    place = torch.empty(len(sources), dtype=torch.float64)
    place[torch.from_numpy(order)] = position.double() / graph.degrees[sources]
    both = place + place[graph.nodes.argsort(stable=True)]  # of an entry and of its reverse
    once = sources < graph.nodes
    edges = graph.edges[:, both[once].argsort(stable=True)]
    count = edges.shape[1]
    sizes = [round(share * count) for share in (test, valid)]
    held, own, train = edges.split([*sizes, count - sum(sizes)], 1)
    negatives = sample_negatives(graph, sum(sizes), generator).split(sizes, 1)
    return LinkSplit(graph.num_nodes, train, own, held, negatives[1], negatives[0])


def on_graph(task: Diagnosis, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train every predictor on a random split of a graph, rank every node's links, correlate.

    measured: by predictor, Hits@K as "hits". correlations: by predictor, node score and entry.
    strata: by node score, mean Recall@50 of the first predictor in quintiles. shift: by split, see
    `shift`. control: the mean gap of more random splits.
    Raises InputError for fewer links to validate on than K.
    """
    began = time.perf_counter()
    graph, x = task.graph(seed)
    generator = torch.Generator().manual_seed(seed)
    split = split_links(graph, generator)
    if split.valid.shape[1] < task.hits:
        raise InputError(
            f"hits={task.hits}, with {split.valid.shape[1]} links to validate on; no more than "
            "these is right"
        )
    scores = node_scores(split, seed)
    measured, rankings = {}, {}
    for kind in PREDICTORS:
        fit, rankings[kind] = trained(kind, task, LinkTask(split, x, task.hits), seed, reporter)
        means = {name: float(own.mean()) for name, own in rankings[kind].entries().items()}
        measured[kind] = means | {"hits": fit.test, "epoch": fit.epoch}
    moved = {"random": split, "fewest shared neighbours": split_by_overlap(graph, generator)}
    others = [split_links(graph, generator) for _ in range(CONTROLS)]
    correlations = {
        kind: {name: own.correlations(values) for name, values in scores.items()}
        for kind, own in rankings.items()
    }
    facts = {
        "nodes": graph.num_nodes,
        "edges": graph.num_edges,
        "k": task.hits,
        "measured": measured,
        "correlations": correlations,
        "strata": {
            name: quintiles(scores[name], rankings[PREDICTORS[0]])
            for name in ("TC-train", "TC-test", "degree")
        },
        "shift": {name: shift(own) for name, own in moved.items()},
        "control": fmean(gap(own) for own in others),
        "seconds": time.perf_counter() - began,
    }
    told = correlations[PREDICTORS[0]]["TC-test"]["recall@50"]
    return facts, f"TC-test goes with Recall@50 at {told:.2f}"


def trained(
    kind: str, task: Diagnosis, links: LinkTask, seed: int, reporter: Reporter
) -> tuple[LinkFit, NodeRanking]:
    """One predictor: how it was fitted, and how it ranks the links to test."""
    graph, x = links.split.graph, links.x
    torch.manual_seed(seed)
    encoder = EncoderConfig(
        graph.num_nodes if x is None else x.shape[1], ids=x is None, layers=2, dim=task.dim
    )
    predictor = NCN(NCNConfig(encoder, pool="nodes" if kind == "ncn" else "none", dropout=0.0))
    before = None
    if kind == "gcn, re-weighted":
        weighted = ReweightedEncoder(predictor.encoder, graph, symmetric(graph))
        predictor.encoder = weighted  # type: ignore[assignment]
        before = partial(_reweigh, Reweighting(task.alpha, 1, 1), predictor, weighted, x)
    rates = task.rate, task.rate
    training = LinkTraining(task.epochs, task.batch, *rates, removal=kind == "ncn", clip=1.0)
    fit = fit_links(predictor, links, training, seed, reporter, before)
    with torch.no_grad():
        score = partial(predictor.decode, graph, predictor.encoder(graph, x))
        known = links.split.seen(links.split.train, links.split.valid)
        return fit, rank_nodes(score, links.split.test, known)


def _reweigh(
    when: Reweighting,
    predictor: NCN,
    encoder: ReweightedEncoder,
    x: Tensor | None,
    epoch: int,
) -> None:
    def predict(left: Tensor, right: Tensor) -> Tensor:
        return predictor.last(predictor.of_product(left * right))[:, 0]

    if when.due(epoch):
        encoder.update(when.alpha, predict, x)


def node_scores(split: LinkSplit, seed: int) -> Mapping[str, Tensor]:
    """(N,) float64 each, by name: concentration of all kinds, and what it is compared with."""
    graph, parts = split.graph, {"train": None, "val": split.valid, "test": split.test}
    found: dict[str, Tensor] = {}
    for name, held in parts.items():
        found[f"TC-{name}"] = topological_concentration(graph, 1, held)
        found[f"TC-{name}, depth 2"] = topological_concentration(graph, 2, held)
        for depth in DEPTHS:
            drawn = torch.Generator().manual_seed(seed)
            found[f"ATC-{name}, depth {depth}"] = approximate_topological_concentration(
                graph, drawn, depth, held
            )
    whole = nx.Graph(graph.edges.T.tolist())
    whole.add_nodes_from(range(graph.num_nodes))
    between = nx.betweenness_centrality(whole, k=min(200, graph.num_nodes), seed=seed)
    start = np.ones(graph.num_nodes)
    return found | {
        "degree": graph.degrees.double(),
        "degree in val": split.seen(split.valid).degrees.double(),
        "degree in test": split.seen(split.test).degrees.double(),
        "ego density": ego_density(graph),
        "ego density, 2 hops": ego_density(graph, 2),
        "betweenness": torch.tensor([between[node] for node in range(graph.num_nodes)]).double(),
        "eigenvector": torch.from_numpy(eigsh(to_scipy(graph), 1, v0=start)[1][:, 0]).abs(),
    }


def quintiles(scores: Tensor, ranking: NodeRanking) -> list[float]:
    """Mean Recall@50 in each fifth of the ranked nodes by a score; NaN where one is empty."""
    own = ranking.entries()["recall@50"]
    which = strata(scores[ranking.nodes])
    return [float(own[which == part].mean()) for part in range(5)]


def shift(split: LinkSplit) -> dict[str, float]:
    """Mean concentration of the nodes with a link to test, and shared neighbours of links."""
    graph = split.graph
    tested = split.seen(split.test).degrees > 0
    found = {
        f"TC-{name}": float(topological_concentration(graph, 1, held)[tested].mean())
        for name, held in (("train", None), ("val", split.valid), ("test", split.test))
    }
    for name in ("train", "test"):
        shared = shared_neighbours(graph, getattr(split, name))
        found[f"shared, {name}"] = float(shared.mean())
    return found | {"gap": gap(split)}


def gap(split: LinkSplit) -> float:
    """How many more neighbours links to test share than links to train on, in standard errors."""
    train, test = (shared_neighbours(split.graph, pairs) for pairs in (split.train, split.test))
    noise = (train.var() / len(train) + test.var() / len(test)).sqrt()
    return float((test.mean() - train.mean()) / noise.clamp_min(1e-12))
