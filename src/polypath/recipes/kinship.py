"""Family trees: the grandparents in one, learnt in another, by NBFNet and by embeddings.

Source: NBFNet's specification, small experiment: grandparent = parent ∘ parent.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polypath.graphs.explain import explain
from polypath.graphs.knowledge_splits import KnowledgeSplit
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.passing import Incoming
from polypath.graphs.triples import KnowledgeGraph
from polypath.recipes.trials import Facts
from polypath.training.parts import Reporter
from polypath.training.triples import TripleTraining, fit_triples, rank_tails

RELATIONS = ("parent", "spouse", "sibling", "grandparent")
PARENT, SPOUSE, SIBLING, GRANDPARENT = range(4)
RULE = (PARENT, PARENT)
GENERATIONS, COUPLES = 4, 12
"""Of a tree: generations, and couples in each but the last."""


def family(seed: int, name: str) -> tuple[KnowledgeGraph, Tensor]:
    """A tree of parents, spouses and siblings, and the facts (T, 3) of its grandparents.

    Couples have one to four children; of these, so many marry somebody of another couple, or a
    newcomer, that there are as many couples again.
    """
    generator = torch.Generator().manual_seed(seed)
    parents: dict[int, tuple[int, int]] = {}
    couples = [(2 * n, 2 * n + 1) for n in range(COUPLES)]
    people, facts = 2 * COUPLES, []
    for generation in range(1, GENERATIONS):
        children = []
        for couple in couples:
            facts += [(couple[0], SPOUSE, couple[1]), (couple[1], SPOUSE, couple[0])]
            count = int(torch.randint(1, 5, (), generator=generator))
            own = list(range(people, people + count))
            people += count
            parents |= dict.fromkeys(own, couple)
            facts += [(a, SIBLING, b) for a in own for b in own if a != b]
            children += own
        facts += [(child, PARENT, parent) for child in children for parent in parents[child]]
        if generation + 1 < GENERATIONS:
            order = [children[n] for n in torch.randperm(len(children), generator=generator)]
            couples = []
            for child in order[:COUPLES]:
                couples.append((child, people))  # each marries somebody from elsewhere
                people += 1
    grand = [
        (child, GRANDPARENT, above)
        for child, own in parents.items()
        for parent in own
        for above in parents.get(parent, ())
    ]
    names = [f"{name} {n}" for n in range(people)]
    return KnowledgeGraph(torch.tensor(facts), names, RELATIONS), torch.tensor(grand)


def kinship(seed: int) -> KnowledgeSplit:
    """Learn four fifths of the grandparents of one tree, be asked for those of another."""
    (train, known), (inference, asked) = family(2 * seed, "first"), family(2 * seed + 1, "second")
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))
    held = known[order[: len(known) // 5]]
    learnt = known[order[len(known) // 5 :]]
    return KnowledgeSplit(train, held, inference, asked, asked[:0], learnt)


class Embeddings(nn.Module):
    """TransE or DistMult: an entity is a vector, and so is a relation.

    sizes: entities of all graphs that it will see, told apart by their numbers of nodes. Source:
    Bordes et al. 2013, with L2 distances; Yang et al. 2015.
    """

    def __init__(self, sizes: list[int], types: int, kind: Literal["TransE", "DistMult"]) -> None:
        super().__init__()
        self.kind = kind
        self.entities = nn.ModuleDict({str(size): nn.Embedding(size, 64) for size in set(sizes)})
        self.relations = nn.Embedding(types, 64)

    def forward(
        self, edges: Incoming, heads: Tensor, relations: Tensor, tails: Tensor | None = None
    ) -> Tensor:
        table: Any = self.entities[str(edges.num_nodes)]
        head, relation = table(heads), self.relations(relations)
        tail = table.weight.expand(len(heads), -1, -1) if tails is None else table(tails)
        if self.kind == "DistMult":
            return (tail @ (head * relation)[:, :, None])[:, :, 0]
        return 12 - (tail - (head + relation)[:, None]).norm(dim=2)


@dataclass(frozen=True)
class Kinship:
    """One way to learn the grandparents: embeddings, or NBFNet of so many layers."""

    kind: Literal["NBFNet", "TransE", "DistMult"]
    epochs: int
    layers: int = 1


def on_kinship(task: Kinship, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train on one tree, rank the grandparents of the other; walks that explain NBFNet's hits."""
    began = time.perf_counter()
    split = kinship(seed)
    torch.manual_seed(seed)
    types = split.train.num_types
    model: nn.Module
    if task.kind == "NBFNet":
        model = NBFNet(NBFNetConfig(types, 16, task.layers, dependent=False))
    else:
        sizes = [split.train.num_nodes, split.inference.num_nodes]
        model = Embeddings(sizes, types, task.kind)
        # There are no messages: parents, spouses and siblings have to be learnt as facts.
        split = replace(split, learnt=torch.cat([split.train.facts, split.lessons]))
    rate = 5e-3 if task.kind == "NBFNet" else 2e-2
    training = TripleTraining(task.epochs, 32, 16, rate, removal="none", looks=5)
    fit = fit_triples(model, split, training, seed, reporter)
    valid, test = split.known()
    facts: Facts = {
        "valid": rank_tails(model, split.train, split.valid, valid).facts(),
        "test": rank_tails(model, split.inference, split.test, test).facts(),
        "losses": fit.losses,
    }
    if isinstance(model, NBFNet) and task.layers > 1:
        facts |= explained(model, split)
    facts["seconds"] = time.perf_counter() - began
    return facts, f"MRR {facts['test']['mrr']:.3f} on the other tree"


def explained(model: NBFNet, split: KnowledgeSplit, most: int = 60) -> Facts:
    """Of tails that are ranked first: the share whose best walk is parent, parent; all kinds."""
    graph = split.inference
    ranks = rank_tails(model, graph, split.test, split.known()[1]).ranks[: len(split.test)]
    hits = split.test[ranks == 1][:most]
    edges, kinds = graph.edges(), Counter[str]()
    for head, relation, tail in hits.tolist():
        walks = explain(model, edges, head, relation, tail, count=1)
        kinds[", ".join(graph.relation(kind) for _, kind, _ in walks[0].edges)] += 1
    rule = ", ".join(RELATIONS[kind] for kind in RULE)
    return {"rule": kinds[rule] / max(len(hits), 1), "walks": dict(kinds.most_common(5))}
