"""Links of one graph as one predictor or heuristic ranks them, under one seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import networkx as nx
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import (
    Adjacency,
    LinkSplit,
    NamedGraph,
    adamic_adar,
    katz,
    personalised_pagerank,
    resource_allocation,
    shared_neighbours,
    split_links,
    undirected,
)
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.ncn import NCN, NCNC, NCNCConfig, NCNConfig, Pool
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import SavedPredictor
from polypath.recipes.graph_sources import read
from polypath.recipes.trials import Facts
from polypath.training.links import LinkTask, LinkTraining, fit_links
from polypath.training.ncn import published_ncn
from polypath.training.parts import Reporter

Heuristic = Callable[[Adjacency, Tensor], Tensor]
HEURISTICS: Mapping[str, Heuristic] = {
    "CN": shared_neighbours,
    "AA": adamic_adar,
    "RA": resource_allocation,
    "PPR": personalised_pagerank,
    "Katz": katz,
}
PLAIN, GAE, COUNTED, SUMMED, COMPLETED, KEPT = (
    *("GCN, untuned", "GAE", "GAE + CN"),
    *("NCN", "NCNC", "NCN, edges kept"),
)
LEARNT = (PLAIN, GAE, COUNTED, SUMMED, COMPLETED, KEPT)
DEGREE, FEATURES = 12, 64
"""Of the geometric graph: mean degree, and how many random numbers a node has as features."""
SHARED = (0, 1, 2)
"""Test links are told apart by so many shared neighbours, the last or more."""


@dataclass(frozen=True)
class LinkArm:
    """What is trained, or which heuristics are taken, on which graph.

    source: a file of `keep`, or None for a geometric graph of so many nodes that each seed draws.
    missing: the share of training edges that nothing sees. published: the authors' constants for
    this data set, or None for the defaults of the class. models: where the first seed's predictor
    is saved, or None.
    """

    arm: str
    source: Path | None
    nodes: int
    missing: float
    epochs: int
    hits: int
    published: str | None = None
    models: Path | None = None

    def graph(self, seed: int) -> NamedGraph:
        """The graph, with features or without."""
        if self.source is None:
            return geometric(self.nodes, seed)
        return binary(read(self.source))


def binary(graph: NamedGraph) -> NamedGraph:
    """With features of 0 and 1, as the published constants take them."""
    return graph if graph.x is None else replace(graph, x=(graph.x != 0).float())


def geometric(nodes: int, seed: int) -> NamedGraph:
    """Points in a square, linked where they are near; their features are random."""
    radius = (DEGREE / nodes / torch.pi) ** 0.5
    drawn = nx.random_geometric_graph(nodes, radius, seed=seed)
    x = torch.randn(nodes, FEATURES, generator=torch.Generator().manual_seed(seed))
    edges = torch.tensor(list(drawn.edges), dtype=torch.int64).T
    return NamedGraph(undirected(edges, nodes), [str(node) for node in range(nodes)], x)


def split_of(task: LinkArm, graph: NamedGraph, seed: int) -> LinkSplit:
    """70, 10 and 20 % of the links, twice as many negatives as positives to validate on."""
    generator = torch.Generator().manual_seed(seed)
    split = split_links(graph, generator, 0.1, 0.2, 0.2)
    count = split.train.shape[1]
    seen = torch.randperm(count, generator=generator)[: round(count * (1 - task.missing))]
    return replace(split, train=split.train[:, seen])


def on_links(task: LinkArm, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """One predictor, or all heuristics: Hits@K of test links.

    hits: of all; by_shared: of those with so many shared neighbours, against the same negatives;
    train: of training links as training sees them; valid: by epoch.
    Raises InputError for fewer negatives to validate on than K.
    """
    began = time.perf_counter()
    graph = task.graph(seed)
    split = split_of(task, graph, seed)
    if split.test_negatives.shape[1] <= task.hits:
        raise InputError(
            f"hits={task.hits}, with {split.test_negatives.shape[1]} negatives; fewer than these "
            "is right"
        )
    links = LinkTask(split, graph.x, task.hits)
    facts: Facts
    if task.arm in LEARNT:
        facts = trained(task, graph, links, seed, reporter)
        line = f"Hits@{task.hits} {facts['hits']:.1%}"
    else:
        reporter.skip(task.epochs)
        facts = {name: measured(links, score) for name, score in HEURISTICS.items()}
        line = ", ".join(f"{name} {own['hits']:.1%}" for name, own in facts.items())
    return facts | {"edges": split.train.shape[1], "seconds": time.perf_counter() - began}, line


def measured(links: LinkTask, score: Heuristic) -> Facts:
    """Hits@K of a score of pairs on the training graph, over all test links and by overlap."""
    split, graph = links.split, links.split.graph
    positives, negatives = score(graph, split.test), score(graph, split.test_negatives)
    shared = shared_neighbours(graph, split.test).clamp_max(SHARED[-1])
    return {
        "hits": links.measure(positives, negatives),
        "by_shared": [
            links.measure(own, negatives) if len(own) else None
            for own in (positives[shared == count] for count in SHARED)
        ],
        "shares": [float((shared == count).double().mean()) for count in SHARED],
    }


def trained(
    task: LinkArm, graph: NamedGraph, links: LinkTask, seed: int, reporter: Reporter
) -> Facts:
    """Fits a predictor; see `on_links`."""
    torch.manual_seed(seed)
    predictor, training = made(task, graph)
    fit = fit_links(predictor, links, training, seed, reporter)

    def score(seen: Adjacency, pairs: Tensor) -> Tensor:
        return link_scores(predictor, seen, graph.x, pairs)

    facts = measured(links, score) | {"valid": fit.valids, "epoch": fit.epoch}
    own, split = links.split.train[:, : training.batch], links.split
    seen = split.graph.without(own) if training.removal else split.graph
    facts["train"] = links.measure(score(seen, own), score(seen, split.test_negatives))
    if task.models is not None and seed == 0:
        whole = Adjacency.of(graph)
        SavedPredictor(predictor, whole, graph.names, graph.x).save(task.models)
    return facts


def made(task: LinkArm, graph: NamedGraph) -> tuple[NCN, LinkTraining]:
    """A predictor and how it is trained."""
    inputs, ids = (graph.num_nodes, True) if graph.x is None else (graph.x.shape[1], False)
    if task.published is None:
        encoder = EncoderConfig(inputs, ids, "pure-gcn", 1, 64)
        config, training = NCNCConfig(encoder), LinkTraining(task.epochs, 1024, 5e-3, 5e-3)
    else:
        found = published_ncn(task.published, inputs)
        config = found.predictor
        training = replace(found.training, epochs=task.epochs)
    training = replace(training, removal=task.arm != KEPT)
    if task.arm == COMPLETED:
        return NCNC(replace(config, depth=1)), training
    if task.arm == PLAIN:
        encoder = EncoderConfig(inputs, ids, "gcn", 2, config.encoder.dim)
        plain = NCNConfig(encoder, "none", dropout=0.0)
        return NCN(plain), LinkTraining(task.epochs, 1024, 1e-3, 1e-3, removal=False)
    pools: dict[str, Pool] = {GAE: "none", COUNTED: "count", SUMMED: "nodes", KEPT: "nodes"}
    return NCN(_as_ncn(config, pools[task.arm])), training


def _as_ncn(config: NCNCConfig, pool: Pool) -> NCNConfig:
    """The same without what completes."""
    kept = {one.name: getattr(config, one.name) for one in fields(NCNConfig)}
    return NCNConfig(**kept | {"pool": pool})
