"""What four-node patterns each edge is in: all that orbits at one hop, and of nodes, are made of.

Shapes: N nodes, E edges (i < j), M = 2 E neighbours.
Nodes are ranked by degree and patterns are found from their lowest or highest rank, so that a hub
costs no more than its edges: O(sum over edges of the lower degree).
Source: Chiba and Nishizeki 1985; the closed forms of GRADCO (arXiv 2405.14194) as sums over these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, reduce
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.graphlets.bits import ones_of
from polypath.graphs.kernels import array, inner

Given = TypeVar("Given")
Made = TypeVar("Made")

MOST_NODES = 2**31
"""Below it no entry of an orbit adjacency, and no sum on the way to one, can leave int64."""

SHARE = 1 << 18
"""Neighbours whose edges are worth another worker."""


class Ranked(NamedTuple):
    """A graph whose nodes are numbered by degree, the lowest first.

    starts (N + 1,), nodes (M,): its neighbours, ascending. above (N,): where each node's neighbours
    of a higher rank begin. ids (M,): the edge of each. turned (E,) bool: whether the end of an edge
    with the higher rank is the one with the smaller id.
    """

    starts: np.ndarray
    above: np.ndarray
    nodes: np.ndarray
    ids: np.ndarray
    turned: np.ndarray


@dataclass(frozen=True, eq=False)
class EdgeCounts:
    """Of a graph's edges (i, j), i < j, and of its nodes; all int64.

    graph: whose. ids: (M,) the edge of each neighbour. triangles: (E,) T, those on the edge.
    cliques: (E,) of four nodes. squares: (E,) closed walks of four different nodes, with chords or
    without. degrees: (E,) the sum of degrees of common neighbours. left, right: (E,) the sum of
    T over the edges from i (from j) to common neighbours.
    """

    graph: Adjacency
    ids: np.ndarray
    triangles: np.ndarray
    cliques: np.ndarray
    squares: np.ndarray
    degrees: np.ndarray
    left: np.ndarray
    right: np.ndarray


def count_edges(graph: Adjacency, workers: int | None = None) -> EdgeCounts:
    """Count on all edges, in shares of a thread each that add up."""
    ids, ranked, triangles = _prepare(graph, workers)
    parts = _added(_patterns, ranked, triangles, workers=workers)
    cliques, squares, degrees, low, high = parts
    left, right = np.where(ranked.turned, high, low), np.where(ranked.turned, low, high)
    return EdgeCounts(graph, ids, triangles, cliques, squares, degrees, left, right)


def count_triangles(graph: Adjacency, workers: int | None = None) -> np.ndarray:
    """(M,) int64: the triangles on the edge to each neighbour."""
    ids, _, triangles = _prepare(graph, workers)
    return triangles[ids]


def threads(workers: int | None) -> int:
    """How many work at once: torch's number where nothing is said."""
    if workers is not None and workers < 1:
        raise InputError(f"workers={workers}; at least 1 is right")
    return workers or torch.get_num_threads()


def in_threads(
    work: Callable[[Given], Made], given: Sequence[Given], workers: int | None
) -> Iterator[Made]:
    """What is made of each, in the order given; compiled loops let the others work."""
    count = min(threads(workers), len(given))
    if count < 2:
        yield from map(work, given)
        return
    with ThreadPoolExecutor(count) as pool:
        yield from pool.map(work, given)


def _prepare(graph: Adjacency, workers: int | None) -> tuple[np.ndarray, Ranked, np.ndarray]:
    if graph.num_nodes >= MOST_NODES:
        raise InputError(f"{graph.num_nodes} nodes; orbits are counted of fewer than 2^31")
    source, target = entries(graph)
    ids = _edge_ids(source, target)
    ranked = _ranked(graph.num_nodes, source, target, ids)
    return ids, ranked, _added(_triangles, ranked, workers=workers)


def entries(graph: Adjacency) -> tuple[np.ndarray, np.ndarray]:
    """(M,) int64 twice: whose neighbour each entry of the lists is, and which.

    What torch has for this waits for its threads, which takes longer than all else on small graphs.
    """
    starts = array(graph.starts)
    return np.repeat(np.arange(len(starts) - 1), np.diff(starts)), array(graph.nodes)


def _edge_ids(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(M,) int64: the place of each entry's edge in `Adjacency.edges`."""
    forth = source < target
    ids = np.empty(len(target), np.int64)
    ids[forth] = np.arange(len(target) // 2)
    # Backward, entries by target then source are the edges in their order.
    back = np.flatnonzero(~forth)
    ids[back[np.argsort(target[back], kind="stable")]] = np.arange(len(back))
    return ids


def _ranked(nodes: int, source: np.ndarray, target: np.ndarray, ids: np.ndarray) -> Ranked:
    rank = np.empty(nodes, np.int64)
    rank[np.argsort(np.bincount(source, minlength=nodes), kind="stable")] = np.arange(nodes)
    forth = source < target
    turned = rank[source[forth]] > rank[target[forth]]
    order = np.lexsort((rank[target], rank[source]))
    source, target, ids = rank[source[order]], rank[target[order]], ids[order]
    starts = np.searchsorted(source, np.arange(nodes + 1))
    above = starts[:-1] + np.bincount(source[target < source], minlength=nodes)
    return Ranked(starts, above, target, ids, turned)


def _added(
    share: Callable[..., np.ndarray], ranked: Ranked, *more: np.ndarray, workers: int | None
) -> np.ndarray:
    """The sum of the shares, each of the nodes n, n + count, n + 2 count and so on."""
    count = min(threads(workers), 1 + len(ranked.nodes) // SHARE)
    call = partial(share, *ranked[:4], *more)
    return reduce(np.add, in_threads(lambda n: call(n, count), range(count), workers))


@inner
def _triangles(
    starts: np.ndarray, above: np.ndarray, nodes: np.ndarray, ids: np.ndarray, first: int, step: int
) -> np.ndarray:
    """(E,): triangles whose lowest node is of this share, added to their edges."""
    count = len(above)
    found = np.zeros(len(nodes) // 2, np.int64)
    edge = np.full(count, -1, np.int64)
    for u in range(first, count, step):
        for a in range(above[u], starts[u + 1]):
            edge[nodes[a]] = ids[a]
        for a in range(above[u], starts[u + 1]):
            v = nodes[a]
            for b in range(above[v], starts[v + 1]):
                third = edge[nodes[b]]
                if third >= 0:
                    found[ids[a]] += 1
                    found[ids[b]] += 1
                    found[third] += 1
        for a in range(above[u], starts[u + 1]):
            edge[nodes[a]] = -1
    return found


@inner
def _patterns(
    starts: np.ndarray,
    above: np.ndarray,
    nodes: np.ndarray,
    ids: np.ndarray,
    triangles: np.ndarray,
    first: int,
    step: int,
) -> np.ndarray:
    """(5, E): cliques, squares, degrees, and both sums of triangles, low rank first."""
    count = len(above)
    found = np.zeros((5, len(nodes) // 2), np.int64)
    place = np.full(count, -1, np.int64)
    wedges = np.zeros(count, np.int64)
    for u in range(first, count, step):
        _squares(starts, nodes, ids, u, wedges, found[1])
        own = nodes[above[u] : starts[u + 1]]
        edges = ids[above[u] : starts[u + 1]]
        for a in range(len(own)):
            place[own[a]] = a
        # Which of u's higher neighbours are next to each other, a row of bits for each.
        near = np.zeros((len(own), (len(own) + 63) // 64), np.uint64)
        for a in range(len(own)):
            v = own[a]
            for b in range(above[v], starts[v + 1]):
                c = place[nodes[b]]
                if c < 0:
                    continue
                near[a, c >> 6] |= np.uint64(1) << np.uint64(c & 63)
                near[c, a >> 6] |= np.uint64(1) << np.uint64(a & 63)
                uv, uw, vw = edges[a], edges[c], ids[b]
                w = own[c]
                found[2, uv] += starts[w + 1] - starts[w]
                found[2, uw] += starts[v + 1] - starts[v]
                found[2, vw] += starts[u + 1] - starts[u]
                found[3, uv] += triangles[uw]
                found[4, uv] += triangles[vw]
                found[3, uw] += triangles[uv]
                found[4, uw] += triangles[vw]
                found[3, vw] += triangles[uv]
                found[4, vw] += triangles[uw]
        twice = np.zeros(len(own), np.int64)  # cliques on (u, v): from either of their ends at v
        for a in range(len(own)):
            v = own[a]
            for b in range(above[v], starts[v + 1]):
                c = place[nodes[b]]
                if c < 0:
                    continue
                both = 0
                for word in range(near.shape[1]):
                    both += ones_of(near[a, word] & near[c, word])
                found[0, ids[b]] += both
                twice[a] += both
                twice[c] += both
        for a in range(len(own)):
            found[0, edges[a]] += twice[a] // 2
            place[own[a]] = -1
    return found


@inner
def _squares(
    starts: np.ndarray,
    nodes: np.ndarray,
    ids: np.ndarray,
    top: int,
    wedges: np.ndarray,
    found: np.ndarray,
) -> None:
    """Add the squares whose highest node this is to their edges; `wedges` is zero, and stays so."""
    for a in range(starts[top], starts[top + 1]):
        u = nodes[a]
        if u > top:
            break
        for b in range(starts[u], starts[u + 1]):
            if nodes[b] >= top:
                break
            wedges[nodes[b]] += 1
    for a in range(starts[top], starts[top + 1]):
        u = nodes[a]
        if u > top:
            break
        for b in range(starts[u], starts[u + 1]):
            if nodes[b] >= top:
                break
            more = wedges[nodes[b]] - 1
            found[ids[a]] += more
            found[ids[b]] += more
    for a in range(starts[top], starts[top + 1]):
        u = nodes[a]
        if u > top:
            break
        for b in range(starts[u], starts[u + 1]):
            if nodes[b] >= top:
                break
            wedges[nodes[b]] = 0
