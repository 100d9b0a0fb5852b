"""What a saved model says of links that a user asks for, each with the paths that explain it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.explain import explain
from polypath.graphs.files import find
from polypath.graphs.nbfnet import NBFNet, with_loops
from polypath.graphs.passing import Incoming
from polypath.graphs.paths import paths_between
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import SavedPredictor
from polypath.graphs.saved_knowledge import SavedKnowledge
from polypath.graphs.triples import KnowledgeGraph, Known


@dataclass(frozen=True)
class Answer:
    """A link with its score; known: it is in the graph.

    relation: empty where links are of one kind. paths: from source to target; names of nodes, in a
    knowledge graph with the relations between them.
    """

    source: str
    relation: str
    target: str
    probability: float
    logit: float
    known: bool
    paths: Sequence[Sequence[str]]


def of_pairs(saved: SavedPredictor, pairs: Tensor, paths: int) -> list[Answer]:
    """Answers to pairs (2, B), in their order, by the graph without these."""
    graph = saved.graph.without(pairs)  # as in training: no answer may know itself
    logits = link_scores(saved.predictor, graph, saved.x, pairs)
    return _answers(saved, graph, pairs, logits, paths)


def partners(saved: SavedPredictor, name: str, top: int, paths: int) -> list[Answer]:
    """The likeliest of the nodes that a node is not linked to."""
    node = find({own: place for place, own in enumerate(saved.names)}, name, "links predict")
    graph, others = saved.graph, torch.arange(saved.graph.num_nodes)
    near = graph.nodes[graph.starts[node] : graph.starts[node + 1]]
    others = others[(others != node) & ~torch.isin(others, near)]
    if not len(others):
        raise InputError(f"links predict: {name} is linked to all others")
    pairs = torch.stack([torch.full_like(others, node), others])
    logits = saved.scores(pairs)
    best = logits.argsort(descending=True, stable=True)[:top]
    return _answers(saved, graph, pairs[:, best], logits[best], paths)


def _answers(
    saved: SavedPredictor, graph: Adjacency, pairs: Tensor, logits: Tensor, count: int
) -> list[Answer]:
    names, known = saved.names, saved.graph.has(pairs).tolist()
    ways = partial(paths_between, graph)
    if isinstance(saved.predictor, NBFNet):
        ways = partial(_walked, saved.predictor, with_loops(graph))
    return [
        Answer(
            names[i],
            "",
            names[j],
            float(logits[place].sigmoid()),
            float(logits[place]),
            known[place],
            [[names[node] for node in path] for path in ways(i, j, count)],
        )
        for place, (i, j) in enumerate(pairs.T.tolist())
    ]


def _walked(
    model: NBFNet, edges: Incoming, source: int, target: int, count: int
) -> list[list[int]]:
    """The nodes of the walks that a model's score depends on most, without stays at a node."""
    found: dict[tuple[int, ...], None] = {}
    for walk in explain(model, edges, source, 0, target, count=10 * count) if count else ():
        found[source, *(b for a, _, b in walk.edges if a != b)] = None
    return [list(path) for path in found][:count]


def of_facts(saved: SavedKnowledge, facts: Tensor, paths: int) -> list[Answer]:
    """Answers to facts (T, 3), in their order, by the graph without these."""
    graph = saved.graph
    there, asked = graph.keys(graph.facts), graph.keys(facts)
    left = graph.with_facts(graph.facts[~torch.isin(there, asked)])
    logits = SavedKnowledge(saved.model, left).scores(facts[:, 0], facts[:, 1], facts[:, 2:])
    return _facts(saved.model, left, facts, logits[:, 0], torch.isin(asked, there), paths)


def tails(
    saved: SavedKnowledge, name: str, relation: str, inverse: bool, top: int, paths: int
) -> list[Answer]:
    """The likeliest tails of a head and a relation that are not known; inverse: heads of a tail."""
    graph = saved.graph
    head = find({own: n for n, own in enumerate(graph.entities)}, name, "links predict", "entity")
    kinds = {own: place for place, own in enumerate(graph.relations)}
    kind = find(kinds, relation, "links predict", "relation") + inverse * len(kinds)
    heads, relations = torch.tensor([head]), torch.tensor([kind])
    free = ~Known(graph, graph.facts).mask(heads, relations)[0]
    free[head] = False
    logits = saved.scores(heads, relations)[0]
    order = logits.argsort(descending=True, stable=True)
    best = order[free[order]][:top]
    facts = torch.stack([heads.expand_as(best), relations.expand_as(best), best], 1)
    return _facts(saved.model, graph, facts, logits[best], torch.zeros_like(best).bool(), paths)


def _facts(
    model: NBFNet, graph: KnowledgeGraph, facts: Tensor, logits: Tensor, known: Tensor, count: int
) -> list[Answer]:
    edges, names, found = graph.edges(), graph.entities, []
    for place, (head, kind, tail) in enumerate(facts.tolist()):
        walks = explain(model, edges, head, kind, tail, count=count) if count else []
        steps = [[(graph.relation(r), names[b]) for _, r, b in walk.edges] for walk in walks]
        ways = [[names[head], *chain.from_iterable(words)] for words in steps]
        logit = logits[place]
        probability = float(logit.sigmoid())
        link = names[head], graph.relation(kind), names[tail]
        found.append(Answer(*link, probability, float(logit), bool(known[place]), ways))
    return found
