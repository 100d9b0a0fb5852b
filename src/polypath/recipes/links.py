"""Link predictors by name: how each is made and trained on the links of a graph, and measured.

Sources: HeaRT (Li et al. 2023) for splits, measures and the sizes of plain networks; the systems'
own papers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polypath.errors import unknown
from polypath.graphs import (
    LinkSplit,
    NamedGraph,
    import_graph,
    planetoid,
    ranks_among,
    read_edges,
)
from polypath.graphs.datasets import PLANETOID
from polypath.graphs.decoders import ProductMLP, ProductMLPConfig
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.predictors import link_scores
from polypath.graphs.scorers import COSINE, SCORES, HeuristicConfig, HeuristicScorer
from polypath.recipes.graph_sources import CORA, IMPORTS, Make, has_cora, kept, read
from polypath.recipes.link_arms import COMPLETED, GAE, SUMMED, LinkArm, binary, made
from polypath.training.link_moe import fit_link_moe
from polypath.training.links import LinkTask, LinkTraining, evaluate, fit_links
from polypath.training.parts import Reporter

DATA_SETS = (*PLANETOID, IMPORTS)
VALID, TEST = 0.05, 0.1
"""Shares of links, as HeaRT has them."""
HITS = (1, 10, 50, 100)
EXPERTS = ("cn", "katz", "cosine", "mlp", "gcn", "ncn")
"""Of Link-MoE; without the cosine where nodes have no features."""


@dataclass(frozen=True, eq=False)
class Links:
    """What a system is trained on.

    epochs: of each network. published: a data set whose constants NCN and its kin take, or None.
    experts: of Link-MoE.
    """

    task: LinkTask
    epochs: int
    published: str | None = None
    experts: Sequence[str] = EXPERTS

    @property
    def inputs(self) -> tuple[int, bool]:
        """How many features a node has; how many nodes there are, and True, where it has none."""
        x = self.task.x
        return (self.task.split.num_nodes, True) if x is None else (x.shape[1], False)


System = Callable[[Links, int, Reporter], nn.Module]
"""From links, a seed and a reporter of each epoch to a `LinkPredictor`, chosen by validation."""


def heuristic(name: str, links: Links, seed: int, reporter: Reporter) -> nn.Module:
    """A heuristic, whose scale is fitted on the links to validate on."""
    reporter.skip(links.epochs)
    split = links.task.split
    scorer = HeuristicScorer(HeuristicConfig(name))
    scorer.fit(split.graph, links.task.x, split.valid, split.valid_negatives)
    return scorer


def best_heuristic(links: Links, seed: int, reporter: Reporter) -> nn.Module:
    """The one that ranks links to validate on best."""
    reporter.skip(links.epochs)
    share = replace(links, epochs=0)
    names = [name for name in SCORES if name != COSINE or links.task.x is not None]
    every = [heuristic(name, share, seed, reporter) for name in names]
    return max(every, key=partial(validation, links.task))


def validation(task: LinkTask, predictor: nn.Module) -> float:
    """The task's measure on the pairs to validate on."""
    return evaluate(predictor, task, task.x, task.split.graph, "valid")


def plain(encoder: Mapping[str, Any], links: Links, seed: int, reporter: Reporter) -> nn.Module:
    """An encoder and a network on products; HeaRT's sizes on Cora."""
    inputs, ids = links.inputs
    torch.manual_seed(seed)
    own = EncoderConfig(inputs, ids, dropout=0.3, input_dropout=0.0 if ids else 0.3, **encoder)
    predictor = ProductMLP(ProductMLPConfig(own, layers=3, dropout=0.3))
    training = LinkTraining(links.epochs, 1024, 0.01, 0.01)
    fit_links(predictor, links.task, training, seed, reporter)
    return predictor


def neighbours(arm: str, links: Links, seed: int, reporter: Reporter) -> nn.Module:
    """NCN, NCNC, or the graph auto-encoder with their head."""
    split = links.task.split
    names = [str(node) for node in range(split.num_nodes)]
    graph = NamedGraph(split.graph.edge_index, names, links.task.x)
    torch.manual_seed(seed)
    hits = links.task.hits or HITS[-1]
    predictor, training = made(
        LinkArm(arm, None, 0, 0.0, links.epochs, hits, links.published), graph
    )
    fit_links(predictor, links.task, training, seed, reporter)
    return predictor


def paths(links: Links, seed: int, reporter: Reporter) -> nn.Module:
    """NBFNet at a size for a CPU, with edges that mean the same to all.

    An eighth of the epochs, of batches of a sixteenth of the others' size.
    """
    torch.manual_seed(seed)
    predictor = NBFNet(NBFNetConfig(1, dim=16, layers=4, dependent=False))
    epochs = -(-links.epochs // 8)
    fit_links(predictor, links.task, LinkTraining(epochs, 64, 5e-3, 5e-3), seed, reporter)
    reporter.skip(links.epochs - epochs)
    return predictor


def mixture(links: Links, seed: int, reporter: Reporter) -> nn.Module:
    """Link-MoE, whose experts are trained before."""
    names = experts_on(links.experts, links.task.x)
    shared = Shared(reporter, len(names))
    experts = [ROSTER[name](links, seed, shared) for name in names]
    return fit_link_moe(experts, links.task, seed)[0]


def experts_on(names: Sequence[str], x: Tensor | None) -> list[str]:
    """Those that need no features where there are none."""
    return [name for name in names if name != COSINE or x is not None]


@dataclass
class Shared:
    """A reporter for several parts that follow each other and are one to who listens."""

    reporter: Reporter
    parts: int
    told: int = 0

    def skip(self, steps: int) -> None:
        before = self.told // self.parts
        self.told += steps
        self.reporter.skip(self.told // self.parts - before)

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told += 1
        if self.told % self.parts == 0:
            self.reporter.advance(loss, tokens_per_second)

    def stop(self) -> bool:
        return self.reporter.stop()


ROSTER: Mapping[str, System] = {
    **{name: partial(heuristic, name) for name in SCORES},
    "heuristics": best_heuristic,
    "mlp": partial(plain, {"layers": 0, "dim": 256}),
    "gcn": partial(plain, {"layers": 1, "dim": 128}),
    "gae": partial(neighbours, GAE),
    "ncn": partial(neighbours, SUMMED),
    "ncnc": partial(neighbours, COMPLETED),
    "nbfnet": paths,
    "link-moe": mixture,
}


def system(name: str) -> System:
    """A system of the roster; raises InputError for another name."""
    if name not in ROSTER:
        raise unknown("link predictor", name, ROSTER)
    return ROSTER[name]


@dataclass(frozen=True)
class Source:
    """A graph in a file of `keep`, and the data set whose constants are for it, or None."""

    path: Path
    published: str | None = None

    def read(self) -> NamedGraph:
        """With features as they are, 0 or 1, or without."""
        return binary(read(self.path))


def source(data: Path | None, data_set: str | None, data_dir: Path | None, folder: Path) -> Source:
    """The graph that is asked for, kept in a run's folder once for all its processes.

    data: a file of edges; else a data set by name, or Cora where data_dir, or the folder that
    POLYPATH_DATA names, has it; or the import graph, with the words of modules' names as features.
    Raises InputError for another name.
    """
    if data_set is not None and data_set not in DATA_SETS:
        raise unknown("data set", data_set, DATA_SETS)
    name = data_set or (CORA if has_cora(data_dir) else IMPORTS)
    make: Make = partial(planetoid, name, data_dir)
    if data is not None:
        make = partial(read_edges, data)
    elif name == IMPORTS:
        make = imports_with_words
    path = kept({"graph": make}, folder)["graph"]
    assert path is not None  # as there is something to make
    found = Source(path)
    published = data is None and name in PLANETOID and found.read().x is not None
    return replace(found, published=name if published else None)


def imports_with_words() -> NamedGraph:
    """The import graph, with features."""
    return with_words(import_graph())


def with_words(graph: NamedGraph) -> NamedGraph:
    """A graph of modules, with a feature for each word that is in two names or more."""
    words = [set(name.lower().replace("_", ".").split(".")) - {""} for name in graph.names]
    counts = Counter(word for own in words for word in own)
    places = {word: n for n, word in enumerate(sorted(w for w in counts if counts[w] > 1))}
    x = torch.zeros(graph.num_nodes, len(places))
    for node, own in enumerate(words):
        x[node, [places[word] for word in own if word in places]] = 1
    return replace(graph, x=x)


def measures(positives: Tensor, negatives: Tensor) -> dict[str, float | None]:
    """MRR, Hits@K as "hits@K" and AUC of scores (P,), among (M,) of all or (P, K) of each.

    Ties are in the middle of ranks. Hits@K is None where there are not more negatives than K.
    """
    ranks, rivals = ranks_among(positives, negatives), negatives.shape[-1]
    found: dict[str, float | None] = {"mrr": float((1 / ranks).mean())}
    for k in HITS:
        some = rivals > k
        found[f"hits@{k}"] = float(hit(positives, negatives, k).double().mean()) if some else None
    return found | {"auc": float(1 - (ranks.mean() - 1) / rivals)}


def hit(positives: Tensor, negatives: Tensor, k: int) -> Tensor:
    """(P,) bool: above the k-th best of all negatives (M,), or among the best k of its own (P, K).

    Source: Hits@K of OGB, and of HeaRT.
    """
    if negatives.ndim == 2:
        return ranks_among(positives, negatives) <= k
    return positives > negatives.topk(k).values[-1]


def parameters(predictor: nn.Module) -> int:
    """How many numbers were learnt, by experts that rest among them."""
    return sum(own.numel() for own in predictor.parameters())


def scores_of(predictor: nn.Module, split: LinkSplit, x: Tensor | None, pairs: Tensor) -> Tensor:
    """As pairs (2, …) are shaped, on the graph of training links."""
    return link_scores(predictor, split.graph, x, pairs.flatten(1)).view(pairs.shape[1:])
