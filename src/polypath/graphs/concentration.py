"""How much the walks of a node meet those of its neighbours: topological concentration.

Shapes: N nodes, B pairs, E held-out edges; K is the depth of walks. T_k(i) is the multiset of the
ends of all walks of k edges from i, H_k(i) its support, and β one over the mean degree.
Source: A Topological Perspective on Demystifying GNN-Based Link Prediction Performance (Wang et al.
2024), arXiv 2310.04612; as the authors' code has it, which counts walks and divides by i's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.heuristics import to_scipy
from polypath.graphs.kernels import array, inner, kernel
from polypath.graphs.products import mean_with_self, ones, propagate

MUCH_LONGER = 16
"""A list is searched instead of read where it is so many times as long as the other."""


def topological_concentration(
    graph: Any, depth: int = 1, neighbours: Tensor | None = None
) -> Tensor:
    """(N,) float64 from 0 to 1: the mean of I(i, j) over the neighbours j of each node i.

    graph: the edges that a model sees; walks go along these alone. neighbours: held-out edges
    (2, E), each once, to be averaged over instead of the graph's own. Depth 1 over the graph's own
    is the local clustering coefficient.
    0 where it is undefined: without neighbours to average over, without edges to walk along, and
    over the graph's own neighbours at a node that has only one.
    Raises InputError for a depth below 1, and for held-out edges that are in the graph or twice.
    """
    graph = Adjacency.of(graph)
    averaged = graph if neighbours is None else _held_out(graph, neighbours)
    pairs = averaged.edge_index.flip(0)  # all pairs, and the second nodes ascend
    met = _intersections(graph, pairs, depth, edges=float(neighbours is None))
    sums = torch.zeros(graph.num_nodes, dtype=torch.float64).index_add(0, pairs[0], met)
    found = sums / averaged.degrees.clamp_min(1)
    return torch.where(graph.degrees >= (2 if neighbours is None else 1), found, 0.0)


def intersections(graph: Any, pairs: Tensor, depth: int = 1) -> Tensor:
    """(B,) float64: I(i, j), the share of the walks of i that end where walks of j do.

    I(i, j) = Σ_ab β^(a+b-2) |walks in T_a(i) that end in H_b(j)| / Σ_ab β^(a+b-2) |T_a(i)|, with a
    and b from 1 to K. Of an edge one is taken off |T_1(i)| for a = b = 1, as j cannot be its own
    neighbour. It is not symmetric. An edge is in place while it is scored: `Adjacency.without`
    takes it out. 0 where i has no walks, or none but the one to j.
    Raises InputError for a depth below 1 and pairs of a node with itself.
    """
    graph = Adjacency.of(graph)
    return _intersections(graph, pairs, depth, graph.has(pairs).double())


def _intersections(graph: Adjacency, pairs: Tensor, depth: int, edges: Tensor | float) -> Tensor:
    """edges: 1 for pairs that are edges of the graph, 0 for others."""
    if depth < 1:
        raise InputError(f"depth={depth}; walks of at least 1 edge are right")
    decay = graph.num_nodes / max(len(graph.nodes), 1)
    powers = decay ** torch.arange(depth, dtype=torch.float64)
    every = (_walks(graph, depth) @ powers)[pairs[0]] * powers.sum() - edges
    return torch.where(every > 0, _met(graph, pairs, depth, decay) / every, 0.0)


def approximate_topological_concentration(
    graph: Any,
    generator: torch.Generator,
    depth: int = 2,
    neighbours: Tensor | None = None,
    dim: int = 64,
) -> Tensor:
    """(N,) float64 from -1 to 1: the mean cosine of each node's code with its neighbours' codes.

    Codes are M = Σ_k Ã^k R / K for k from 1 to K, with Ã = (D + I)^-1 (A + I) and R (N, dim) drawn
    from a normal distribution; their cosines tend to those of the rows of Σ_k Ã^k as dim grows.
    Linear in edges. neighbours, and errors, as in `topological_concentration`; 0 without any.
    """
    graph = Adjacency.of(graph)
    averaged = graph if neighbours is None else _held_out(graph, neighbours)
    if depth < 1 or dim < 1:
        raise InputError(f"depth={depth}, dim={dim}; at least 1 is right for either")
    steps = mean_with_self(graph, ones(graph).double())
    now = torch.randn(graph.num_nodes, dim, generator=generator, dtype=torch.float64)
    codes = torch.zeros_like(now)
    for _ in range(depth):
        now = propagate(graph, steps.values, now, steps.own)
        codes += now
    codes = F.normalize(codes)
    around = propagate(averaged, ones(averaged), codes)
    return (codes * around).sum(1) / averaged.degrees.clamp_min(1)


def ego_density(graph: Any, hops: int = 1) -> Tensor:
    """(N,) float64: the share of edges among all pairs of a node and those around it.

    hops: how far away these are at most. 0 where it is alone. Raises InputError for hops below 1.
    """
    graph = Adjacency.of(graph)
    if hops < 1:
        raise InputError(f"hops={hops}; at least 1 is right")
    found = np.zeros(graph.num_nodes)
    _densities(array(graph.starts), array(graph.nodes), hops, torch.get_num_threads(), found)
    return torch.from_numpy(found)


def strata(scores: Tensor, parts: int = 5) -> Tensor:
    """(N,) int64 from 0, the lowest: which of equally large parts each score is in.

    Quintiles by default. Equal scores are in one part, so that parts differ, or are empty.
    Raises InputError for no part, no scores, and scores that are NaN.
    """
    if parts < 1 or scores.ndim != 1 or not len(scores) or scores.isnan().any():
        raise InputError(
            f"strata: {parts} parts of scores {tuple(scores.shape)}; at least one part, and at "
            "least one score without NaN, (N,), are right"
        )
    bounds = np.quantile(array(scores.double()), np.arange(1, parts) / parts)
    return torch.from_numpy(np.searchsorted(bounds, array(scores.double())))


def _held_out(graph: Adjacency, edges: Tensor) -> Adjacency:
    """The graph of held-out edges alone."""
    seen = graph.has(edges)
    if seen.any():
        i, j = edges[:, seen][:, 0].tolist()
        raise InputError(
            f"{int(seen.sum())} held-out edges are in the graph, the first ({i}, {j}); "
            "neighbours are edges that it does not have"
        )
    return Adjacency.of(torch.cat([edges, edges.flip(0)], 1), graph.num_nodes)


def _walks(graph: Adjacency, depth: int) -> Tensor:
    """(N, K) float64: the number of walks of 1 … K edges from each node."""
    matrix, counts = to_scipy(graph), [np.ones(graph.num_nodes)]
    for _ in range(depth):
        counts.append(matrix @ counts[-1])
    return torch.from_numpy(np.stack(counts[1:], 1))


def _met(graph: Adjacency, pairs: Tensor, depth: int, decay: float) -> Tensor:
    """(B,): Σ_ab β^(a+b-2) Σ_{w in H_b(j)} (A^a)_iw.

    It is an entry i of A (q + β A (q + β A (…))), with q_w = Σ_b β^(b-1) [w in H_b(j)].
    """
    order = pairs[1].argsort(stable=True)
    first, second = pairs[:, order]
    targets, counts = second.unique_consecutive(return_counts=True)
    bounds = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    found = np.empty(pairs.shape[1])
    _meet(
        array(graph.starts),
        array(graph.nodes),
        array(targets),
        array(bounds),
        array(first),
        depth,
        decay,
        torch.get_num_threads(),
        found,
    )
    met = torch.empty(pairs.shape[1], dtype=torch.float64)
    met[order] = torch.from_numpy(found)
    return met


@inner
def _around(
    starts: np.ndarray,
    nodes: np.ndarray,
    own: np.ndarray,
    seen: np.ndarray,
    stamp: int,
    found: np.ndarray,
) -> int:
    """How many nodes are next to any of `own`; `found` gets them, each once."""
    count = 0
    for node in own:
        for place in range(starts[node], starts[node + 1]):
            other = nodes[place]
            if seen[other] != stamp:
                seen[other] = stamp
                found[count] = other
                count += 1
    return count


@kernel
def _meet(
    starts: np.ndarray,
    nodes: np.ndarray,
    targets: np.ndarray,
    bounds: np.ndarray,
    first: np.ndarray,
    depth: int,
    decay: float,
    workers: int,
    found: np.ndarray,
) -> None:
    """Pairs (first[p], targets[t]) for p from bounds[t] to bounds[t + 1] - 1."""
    size = len(starts) - 1
    for worker in prange(workers):
        seen, stamp = np.zeros(size, np.int64), 0
        ends, reached = np.empty((depth, size), np.int64), np.zeros(depth, np.int64)
        asked, counts = np.empty((depth, size), np.int64), np.zeros(depth, np.int64)
        q, sums = np.zeros(size), np.empty((2, size))
        for t in range(worker, len(targets), workers):
            sources = first[bounds[t] : bounds[t + 1]]
            factor = 1.0
            for k in range(depth):
                own = targets[t : t + 1] if k == 0 else ends[k - 1, : reached[k - 1]]
                reached[k] = _around(starts, nodes, own, seen, stamp + 1, ends[k])
                for node in ends[k, : reached[k]]:
                    q[node] += factor
                if k < depth - 1:  # where the sums of step K - k are asked for
                    own = sources if k == 0 else asked[k - 1, : counts[k - 1]]
                    counts[k] = _around(starts, nodes, own, seen, stamp + 2, asked[k])
                stamp += 2
                factor *= decay
            now = q
            for k in range(depth - 2, -1, -1):
                after = sums[k % 2]
                for node in asked[k, : counts[k]]:
                    after[node] = q[node] + decay * _total(starts, nodes, node, now)
                now = after
            for pair in range(bounds[t], bounds[t + 1]):
                node = first[pair]
                near = nodes[starts[node] : starts[node + 1]]
                if depth == 1 and len(near) > MUCH_LONGER * reached[0]:
                    found[pair] = _shared(near, ends[0, : reached[0]])
                else:
                    found[pair] = _total(starts, nodes, node, now)
            for k in range(depth):
                q[ends[k, : reached[k]]] = 0.0


@inner
def _shared(near: np.ndarray, others: np.ndarray) -> float:
    """How many of the others are in an ascending list."""
    found = 0.0
    for node in others:
        place = np.searchsorted(near, node)
        found += place < len(near) and near[place] == node
    return found


@inner
def _total(starts: np.ndarray, nodes: np.ndarray, node: int, values: np.ndarray) -> float:
    """The sum of the values of a node's neighbours."""
    total = 0.0
    for place in range(starts[node], starts[node + 1]):
        total += values[nodes[place]]
    return total


@kernel
def _densities(
    starts: np.ndarray, nodes: np.ndarray, hops: int, workers: int, found: np.ndarray
) -> None:
    """The density of what is at most `hops` away from each node."""
    size = len(starts) - 1
    for worker in prange(workers):
        seen = np.full(size, -1)
        ball = np.empty(size, np.int64)
        for centre in range(worker, size, workers):
            seen[centre] = centre
            ball[0] = centre
            start, count = 0, 1
            for _ in range(hops):
                start, count = (
                    count,
                    count + _around(starts, nodes, ball[start:count], seen, centre, ball[count:]),
                )
            ends = 0
            for node in ball[:count]:
                for place in range(starts[node], starts[node + 1]):
                    ends += seen[nodes[place]] == centre
            if count > 1:
                found[centre] = ends / (count * (count - 1))
