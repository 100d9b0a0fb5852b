"""Why a fact is predicted: the walks from head to tail that its score depends on most.

Source: NBFNet (Zhu et al. 2021), section 4.5 and the authors' code: the gradient of a score with
respect to the weight of each edge at each layer, and a search for the heaviest walks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.nbfnet import NBFNet
from polypath.graphs.passing import Incoming


@dataclass(frozen=True)
class Walk:
    """Edges from a query's head to its tail, each (source, type, target).

    importance: the mean over edges of how fast the score grows with their weights.
    """

    edges: tuple[tuple[int, int, int], ...]
    importance: float


def explain(
    model: NBFNet,
    graph: Any,
    head: int,
    relation: int,
    tail: int,
    beam: int = 10,
    count: int = 10,
) -> list[Walk]:
    """The `count` most important walks of at most as many edges as the model has layers.

    Edges that leave the tail are not taken. beam: how many walks to each node are followed on.
    Raises InputError for ids that are not there, and beam or count below 1.
    """
    if min(beam, count) < 1:
        raise InputError(f"explain: beam={beam}, count={count}; at least 1 is right")
    edges = graph if isinstance(graph, Incoming) else Incoming.of(graph)
    slopes = edge_slopes(model, edges, head, relation, tail)
    walks = heaviest_walks(edges, slopes, head, tail, beam)
    return sorted(walks, key=lambda walk: -walk.importance)[:count]


def edge_slopes(model: NBFNet, edges: Incoming, head: int, relation: int, tail: int) -> Tensor:
    """(T, E): the gradient of a fact's score, by layer and by edge in the order of `edges`."""
    device = next(model.parameters()).device
    heads, relations, tails = (torch.tensor([n], device=device) for n in (head, relation, tail))
    weights = [
        torch.ones(len(edges.sources), device=device, requires_grad=True) for _ in model.layers
    ]
    score = model(edges.to(device), heads, relations, tails[:, None], weights)
    slopes = torch.stack(torch.autograd.grad(score.sum(), weights)).cpu()
    return slopes[:, edges.order.cpu()]


def heaviest_walks(
    edges: Incoming, slopes: Tensor, head: int, tail: int, beam: int = 10
) -> list[Walk]:
    """Walks from head to tail whose edges have the greatest sums of slopes (T, E), layer by layer.

    A walk may begin at any layer, as the boundary is added at each; it weighs what it weighs from
    the best one. From each layer and of each length, as many as the beam is wide at most; those
    that pass the tail are left out.
    """
    found: dict[tuple[tuple[int, int, int], ...], Walk] = {}
    for first in range(len(slopes)):
        for walk in _walks(edges, slopes[first:].double(), head, tail, beam):
            known = found.get(walk.edges)
            if known is None or known.importance < walk.importance:
                found[walk.edges] = walk
    return list(found.values())


def _walks(edges: Incoming, slopes: Tensor, head: int, tail: int, beam: int) -> Iterator[Walk]:
    sources, targets, types = edges.sources, edges.targets, edges.types
    open_edges = (sources != tail).nonzero()[:, 0]
    # Walks of the last length: where they end, what they weigh, and where each came from.
    ends, sums = torch.tensor([head]), torch.zeros(1, dtype=torch.float64)
    history: list[tuple[Tensor, Tensor]] = []
    for slope in slopes:
        order = ends.argsort(stable=True)
        bounds = torch.arange(edges.num_nodes + 1)
        starts = torch.searchsorted(ends[order], bounds)
        counts = starts.diff()[sources[open_edges]]
        taken = open_edges.repeat_interleave(counts)
        places = torch.arange(len(taken)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        walks = order[starts[sources[taken]] + places]
        weights = sums[walks] + slope[taken]
        kept = _best_of_each(targets[taken], weights, beam)
        taken, ends, sums = taken[kept], targets[taken[kept]], weights[kept]
        history.append((taken, walks[kept]))
        for place in (ends == tail).nonzero()[:, 0].tolist():
            path, at = [], place
            for edge, before in reversed(history):
                path.append(int(edge[at]))
                at = int(before[at])
            named = [(int(sources[e]), int(types[e]), int(targets[e])) for e in reversed(path)]
            yield Walk(tuple(named), float(sums[place]) / len(path))


def _best_of_each(groups: Tensor, weights: Tensor, most: int) -> Tensor:
    """Places of the `most` greatest weights of each group; of equals, the first."""
    order = weights.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    first = torch.searchsorted(ordered, ordered)
    return order[torch.arange(len(order)) - first < most]
