"""Negatives that are hard to tell from a link: each positive gets its own, near to it.

Source: HeaRT (Li et al. 2023), section 5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.heuristics import BLOCK, pagerank_rows, to_scipy
from polypath.graphs.kernels import array

Rows = Callable[[np.ndarray], np.ndarray]
"""From nodes (S,) to their scores with all nodes, (S, N)."""


def hard_negatives(
    graph: Adjacency,
    positives: Tensor,
    per_positive: int,
    generator: torch.Generator,
    known: Adjacency | None = None,
    x: Tensor | None = None,
) -> Tensor:
    """(2, P, per_positive) int64: for each positive (2, P), pairs that keep one of its ends.

    The other end is one of those that rank highest for the end that stays, by resource allocation,
    personalised PageRank or, where features x (N, F) are given, their cosine: whichever ranks it
    best. Half of the pairs keep the first end, half the second; ties are broken by chance.
    graph: where scores are computed, that of the training edges. known: edges that are never
    negatives, those of the graph and all positives by default.
    Raises InputError for an odd number, and where a node has too few others.
    """
    check_pairs(positives, graph.num_nodes)
    if per_positive < 2 or per_positive % 2:
        raise InputError(f"hard_negatives: per_positive={per_positive}; 2, 4, 6, … is right")
    known = known or graph.joined(positives)
    nodes, place = positives.unique(return_inverse=True)
    nearest = _nearest(graph, known, nodes, per_positive // 2, generator, x)[place]
    stay = positives[..., None].expand_as(nearest)
    first = torch.stack([stay[0], nearest[0]])
    second = torch.stack([nearest[1], stay[1]])
    return torch.cat([first, second], -1)


def _nearest(
    graph: Adjacency,
    known: Adjacency,
    nodes: Tensor,
    count: int,
    generator: torch.Generator,
    x: Tensor | None,
) -> Tensor:
    """(S, count) int64: who ranks highest for each node among those that are not known."""
    least = graph.num_nodes - 1 - int(known.degrees[nodes].max()) if len(nodes) else count
    if least < count:
        raise InputError(
            f"hard_negatives: {count} others are wanted of each end; one has only {least}"
        )
    scores = list(_scores(graph, x))
    found = []
    for own in nodes.split(max(1, BLOCK // max(graph.num_nodes, 1))):
        order = torch.randperm(graph.num_nodes, generator=generator)
        best = torch.full((len(own), graph.num_nodes), graph.num_nodes)
        for rows in scores:
            values = torch.from_numpy(rows(array(own)))[:, order]
            values[own[:, None] == order] = -torch.inf
            ranks = values.argsort(dim=1, descending=True, stable=True)
            places = torch.arange(graph.num_nodes).expand_as(ranks)
            best = torch.minimum(best, torch.empty_like(ranks).scatter_(1, ranks, places))
        best[_linked(known, own)[:, order] | (own[:, None] == order)] = graph.num_nodes
        found.append(order[best.argsort(dim=1, stable=True)[:, :count]])
    return torch.cat(found) if found else nodes.new_empty(0, count)


def _linked(known: Adjacency, nodes: Tensor) -> Tensor:
    """(S, N) bool: the rows of the adjacency matrix."""
    return torch.from_numpy(to_scipy(known)[array(nodes)].toarray() > 0)


def _scores(graph: Adjacency, x: Tensor | None) -> Iterator[Rows]:
    matrix = to_scipy(graph)
    shares = matrix.multiply(1 / np.maximum(array(graph.degrees), 1)).tocsr()
    yield lambda nodes: (shares[nodes] @ matrix).toarray()
    yield pagerank_rows(graph)
    if x is not None:
        units = F.normalize(x.double())
        yield lambda nodes: array(units[nodes] @ units.T)
