"""Orbits found another way: by looking at every set of two to four nodes, and as dense algebra."""

from itertools import combinations

import networkx as nx
import numpy as np
import torch

from polypath.graphs import Adjacency
from polypath.graphs.graphlets import ORBIT_PAIRS, OrbitPair

# Each graphlet's edges, and the orbit of each of its nodes.
GRAPHLETS = (
    ([(0, 1)], (0, 0)),
    ([(0, 1), (1, 2)], (1, 2, 1)),
    ([(0, 1), (1, 2), (0, 2)], (3, 3, 3)),
    ([(0, 1), (1, 2), (2, 3)], (4, 5, 5, 4)),
    ([(0, 1), (0, 2), (0, 3)], (7, 6, 6, 6)),
    ([(0, 1), (1, 2), (2, 3), (3, 0)], (8, 8, 8, 8)),
    ([(0, 1), (1, 2), (0, 2), (0, 3)], (11, 10, 10, 9)),
    ([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2)], (13, 12, 13, 12)),
    ([(0, 1), (1, 2), (2, 3), (3, 0), (0, 2), (1, 3)], (14, 14, 14, 14)),
)
SHAPES = tuple(nx.Graph(edges) for edges, _ in GRAPHLETS)


def orbits_of(part: nx.Graph) -> tuple[int, dict[int, int]] | None:
    """The graphlet that a graph is, and the orbit of each node; None where it is not connected."""
    for graphlet, shape in enumerate(SHAPES):
        if shape.order() == part.order() and shape.size() == part.size():
            matcher = nx.isomorphism.GraphMatcher(part, shape)
            if matcher.is_isomorphic():
                orbits = GRAPHLETS[graphlet][1]
                return graphlet, {node: orbits[place] for node, place in matcher.mapping.items()}
    return None


def by_subsets(graph: nx.Graph) -> tuple[dict[OrbitPair, np.ndarray], np.ndarray, np.ndarray]:
    """Dense orbit adjacencies, graphlet adjacencies (9, N, N) and degree vectors (N, 15)."""
    count = len(graph)
    matrices = {pair: np.zeros((count, count), np.int64) for pair in ORBIT_PAIRS}
    together = np.zeros((9, count, count), np.int64)
    degrees = np.zeros((count, 15), np.int64)
    for size in (2, 3, 4):
        for chosen in combinations(graph, size):
            part = nx.Graph(graph.subgraph(chosen))
            found = orbits_of(part)
            if found is None:
                continue
            graphlet, orbits = found
            hops = dict(nx.all_pairs_shortest_path_length(part))
            for i in chosen:
                degrees[i, orbits[i]] += 1
                for j in set(chosen) - {i}:
                    matrices[hops[i][j], orbits[i], orbits[j]][i, j] += 1
                    together[graphlet, i, j] += 1
    return matrices, together, degrees


def dense_forms(a: np.ndarray) -> dict[OrbitPair, np.ndarray]:
    """The specification's closed forms on a dense adjacency matrix (N, N) of int64.

    Those with o1 > o2 are left out. For graphs too large to look at every set.
    """
    count = len(a)
    d, n = a.sum(1), 1 - a - np.eye(count, dtype=np.int64)
    t, w = a * (a @ a), n * (a @ a)
    p = a * d - a - t
    f = np.zeros_like(a)
    for i in range(count):
        own = a[a[i] > 0]  # rows of i's neighbours
        f[i] = ((own[:, a[i] > 0] @ own) * own).sum(0) // 2
    np.fill_diagonal(f, 0)
    k, x = a * f, n * f
    y = a * (a @ (t - a)) - 2 * k

    def past(g: np.ndarray) -> np.ndarray:
        return a * (g.sum(1) - a @ g.T - g.T)

    hub = (past(t) - y) // 2
    c1 = a * ((n * (w - 1)) @ a) - y
    c2 = w * (w - 1) // 2 - x
    q = n * (a @ t) - 2 * x
    return {
        (1, 0, 0): a,
        (1, 1, 2): p,
        (2, 1, 1): w,
        (1, 3, 3): t,
        (1, 4, 5): past(p) - c1,
        (2, 4, 5): n * (a @ p) - 2 * c2,
        (1, 5, 5): p * p.T - c1,
        (3, 4, 4): w @ a - c1 - y - q - p,
        (1, 6, 7): p * (p - 1) // 2 - hub,
        (2, 6, 6): n * ((p - a) @ a) - q,
        (1, 8, 8): c1,
        (2, 8, 8): c2,
        (1, 9, 11): hub,
        (2, 9, 10): q,
        (1, 10, 10): a * (p @ a) - y,
        (1, 10, 11): t * p - y,
        (1, 12, 13): y,
        (2, 12, 12): x,
        (1, 13, 13): t * (t - 1) // 2 - k,
        (1, 14, 14): k,
    }


def star(leaves: int) -> Adjacency:
    """Node 0 and its leaves; networkx takes seconds for a large one."""
    spokes = torch.stack([torch.zeros(leaves, dtype=torch.int64), 1 + torch.arange(leaves)])
    return Adjacency.of(torch.cat([spokes, spokes.flip(0)], 1))
