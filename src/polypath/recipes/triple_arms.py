"""Tails of a knowledge graph, and links of a graph, as one NBFNet tells them under one seed."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor, nn

from polypath.graphs import Adjacency, katz_index, planetoid, split_links
from polypath.graphs.explain import explain
from polypath.graphs.knowledge_splits import KnowledgeSplit, split_facts
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.nbfnet.config import Aggregation
from polypath.graphs.passing import Incoming
from polypath.graphs.predictors import link_scores
from polypath.graphs.python_knowledge import split_packages
from polypath.graphs.saved_knowledge import SavedKnowledge
from polypath.graphs.triple_files import read_grail, read_openke, read_triples
from polypath.graphs.triples import KnowledgeGraph, with_inverses
from polypath.recipes.trials import Facts
from polypath.training.links import LinkTask, LinkTraining, fit_links
from polypath.training.parts import Reporter
from polypath.training.triples import TripleTraining, fit_triples, rank_tails

FEW = 20
"""Types of relations up to which edges mean the same to every query, the paper's choice."""
ASKED = 250
"""Facts that are looked at to choose the best epoch."""


@dataclass(frozen=True)
class TripleArm:
    """Which NBFNet is trained on which graph, and for how long.

    source: a folder of GraIL's or of OpenKE's, or a file of triples. aggregate: None ranks by how
    often an entity is a relation's tail, without training. steps: at most so many in an epoch.
    packages: the triples are of Python's source, some of whose packages are to test on. models:
    where the first seed's model is kept, to be asked by all that is known then.
    """

    source: Path
    aggregate: Aggregation | None
    epochs: int
    batch: int
    steps: int | None = None
    packages: bool = False
    models: Path | None = None


def read_split(source: Path, seed: int, packages: bool = False) -> KnowledgeSplit:
    """The split of a public data set; of a file of triples, one that is drawn by the seed."""
    if (source / "train2id.txt").exists():
        return read_openke(source)
    if source.is_dir():
        return read_grail(source)
    generator, graph = torch.Generator().manual_seed(seed), read_triples(source)
    return split_packages(graph, generator) if packages else split_facts(graph, generator)


class Popularity(nn.Module):
    """How often an entity is the tail of a query's relation; the most usual of these first."""

    def __init__(self, graph: KnowledgeGraph) -> None:
        super().__init__()
        both = with_inverses(graph.facts, len(graph.relations))
        place, ones = both[:, 1] * graph.num_nodes + both[:, 2], torch.ones(len(both))
        counts = torch.zeros(graph.num_types * graph.num_nodes).index_add(0, place, ones)
        self.counts = counts.view(graph.num_types, -1)
        self.all = self.counts.sum(0)

    def forward(self, edges: Incoming, heads: Tensor, relations: Tensor) -> Tensor:
        return self.counts[relations] + self.all / (1 + self.all.max())


def on_triples(arm: TripleArm, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train, and rank the tails of a split's test; the walks that explain one of its facts."""
    began = time.perf_counter()
    split = read_split(arm.source, seed, arm.packages)
    known = split.known()
    facts: Facts = {"sizes": sizes(split)}
    if arm.aggregate is None:
        reporter.skip(arm.epochs)
        model: nn.Module = Popularity(split.inference)
    else:
        model = fitted(arm, split, seed, reporter, facts)
    facts["test"] = rank_tails(model, split.inference, split.test, known[1]).facts()
    if isinstance(model, NBFNet) and arm.aggregate == "pna":
        facts["walks"] = example(model, split, seed)
        if arm.models is not None and seed == 0:
            SavedKnowledge(model, split.whole).save(arm.models)
    facts["seconds"] = time.perf_counter() - began
    return facts, f"MRR {facts['test']['mrr']:.3f}"


def fitted(
    arm: TripleArm, split: KnowledgeSplit, seed: int, reporter: Reporter, facts: Facts
) -> NBFNet:
    """A trained model; facts are told its losses and validations."""
    few = len(split.train.relations) <= FEW
    torch.manual_seed(seed)
    config = NBFNetConfig(
        split.train.num_types, aggregate=arm.aggregate or "pna", dependent=not few
    )
    model = NBFNet(config)
    training = TripleTraining(
        arm.epochs,
        arm.batch,
        temperature=1.0 if few else 0.5,
        removal="facts" if few else "pairs",
        looks=arm.epochs,
        steps=arm.steps,
    )
    order = torch.randperm(len(split.valid), generator=torch.Generator().manual_seed(seed))
    looked = replace(split, valid=split.valid[order[:ASKED]])
    fit = fit_triples(model, looked, training, seed, reporter)
    facts |= {"losses": fit.losses, "valids": fit.valids, "epoch": fit.epoch}
    return model


def sizes(split: KnowledgeSplit) -> dict[str, int]:
    """What a split is made of."""
    return {
        "entities to train on": split.train.num_nodes,
        "facts to train on": len(split.lessons),
        "relations": len(split.train.relations),
        "entities to test on": split.inference.num_nodes,
        "facts to test on": len(split.test),
    }


def example(model: NBFNet, split: KnowledgeSplit, seed: int, most: int = 3) -> dict[str, Any]:
    """The test fact of the best rank that a walk explains, and its most important walks."""
    graph, every = split.inference, len(split.test)
    order = torch.randperm(every, generator=torch.Generator().manual_seed(seed))[:32]
    ranks = rank_tails(model, graph, split.test[order], split.known()[1]).ranks[: len(order)]
    edges = graph.edges()
    for best in ranks.argsort(stable=True):
        fact = split.test[order[best]]
        head, relation, tail = fact.tolist()
        if walks := explain(model, edges, head, relation, tail, count=most):
            break
    return {
        "fact": graph.named(fact),
        "rank": float(ranks[best]),
        "walks": [
            {
                "edges": [
                    [graph.entities[a], graph.relation(kind), graph.entities[b]]
                    for a, kind, b in walk.edges
                ],
                "importance": walk.importance,
            }
            for walk in walks
        ],
    }


@dataclass(frozen=True, eq=False)
class AreaTask(LinkTask):
    """Links whose rankings are measured by the area under the curve of true over false ones."""

    def measure(self, positives: Tensor, negatives: Tensor) -> float:
        return areas(positives, negatives)[0]


def areas(positives: Tensor, negatives: Tensor) -> tuple[float, float]:
    """AUROC, and average precision, of scores (P,) and (M,)."""
    truth = torch.cat([torch.ones_like(positives), torch.zeros_like(negatives)]).numpy()
    scores = torch.cat([positives, negatives]).numpy()
    return float(roc_auc_score(truth, scores)), float(average_precision_score(truth, scores))


@dataclass(frozen=True)
class CitationArm:
    """Cora's links, told by NBFNet or by the Katz index; 85:5:10, one split for all seeds."""

    folder: Path
    kind: Literal["NBFNet", "Katz"]
    epochs: int


def on_citations(arm: CitationArm, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """AUROC and average precision on Cora without its features."""
    began = time.perf_counter()
    graph = planetoid("cora", arm.folder)
    split = split_links(graph.edge_index, torch.Generator().manual_seed(0), 0.05, 0.1)
    test = split.test, split.test_negatives
    facts: Facts = {}
    if arm.kind == "Katz":
        reporter.skip(arm.epochs)
        adjacency: Adjacency = split.graph
        scores = [katz_index(adjacency, pairs) for pairs in test]
    else:
        torch.manual_seed(seed)
        model = NBFNet(NBFNetConfig(1, dependent=False))
        training = LinkTraining(arm.epochs, 64, 5e-3, 5e-3)
        fit = fit_links(model, AreaTask(split), training, seed, reporter)
        facts |= {"losses": fit.losses, "valids": fit.valids, "epoch": fit.epoch}
        scores = [link_scores(model, split.graph, None, pairs) for pairs in test]
    facts["auroc"], facts["ap"] = areas(*scores)
    facts["seconds"] = time.perf_counter() - began
    return facts, f"AUROC {facts['auroc']:.3f}"
