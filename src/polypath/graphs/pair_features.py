"""What the structure of a graph says of pairs of nodes, as numbers of like size for a network.

Shapes: N nodes, B pairs, F features.
Source: Link-MoE (Ma et al. 2024, arXiv 2402.08583), input of the gate, from HeaRT (Li et al. 2023);
counts enter as logarithms, and a path as 1 / its length, where the authors' code has them raw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.concentration import intersections, topological_concentration
from polypath.graphs.graphlets import ORBIT_PAIRS, pair_orbits
from polypath.graphs.heuristics import (
    adamic_adar,
    jaccard,
    katz,
    personalised_pagerank,
    preferential_attachment,
    resource_allocation,
    shared_neighbours,
    shortest_path,
)

BETA = 0.005
"""How much a path of one more edge counts less, for Katz."""
ORBITS = tuple(pair for pair in ORBIT_PAIRS if pair[0] > 1 and pair[1] <= pair[2])
"""Orbit adjacencies that are not 0 for all pairs without an edge, each beside its transpose."""

Feature = Callable[[Adjacency, Tensor], Tensor]
"""From pairs (2, B) whose smaller id is above to (B,) or (B, columns)."""


def _katz(graph: Adjacency, pairs: Tensor) -> Tensor:
    return (katz(graph, pairs, BETA) / BETA**2).log1p()  # one path of two edges counts 1


def _pagerank(graph: Adjacency, pairs: Tensor) -> Tensor:
    return (graph.num_nodes * personalised_pagerank(graph, pairs)).log1p()


HEURISTICS: Mapping[str, Feature] = {
    "aa": lambda graph, pairs: adamic_adar(graph, pairs).log1p(),
    "cn": lambda graph, pairs: shared_neighbours(graph, pairs).log1p(),
    "katz": _katz,
    "ppr": _pagerank,
    "ra": lambda graph, pairs: resource_allocation(graph, pairs).log1p(),
    "sp": lambda graph, pairs: 1 / shortest_path(graph, pairs),
    "jaccard": jaccard,
    "pa": lambda graph, pairs: preferential_attachment(graph, pairs).log1p(),
}
"""Heuristics on scales of like size, in which they rank pairs as they do; (B,) float64."""


def _degrees(graph: Adjacency, pairs: Tensor) -> Tensor:
    return graph.degrees[pairs].sort(0).values.T.double().log1p()


def _orbits(graph: Adjacency, pairs: Tensor) -> Tensor:
    turned = [(hop, second, first) for hop, first, second in ORBITS if first != second]
    counts = pair_orbits(graph, pairs, [*ORBITS, *turned]).double()
    found, other = counts.split([len(ORBITS), len(turned)], 1)
    apart = [place for place, (_, first, second) in enumerate(ORBITS) if first != second]
    found[:, apart] += other
    return found.log1p()


def _concentration(graph: Adjacency, pairs: Tensor) -> Tensor:
    own = topological_concentration(graph)[pairs]
    met = torch.stack([intersections(graph, pairs), intersections(graph, pairs.flip(0))])
    return torch.cat([own.sort(0).values, met.sort(0).values]).T


_WIDE: Mapping[str, tuple[int, Feature]] = {
    "degrees": (2, _degrees),
    "orbits": (len(ORBITS), _orbits),
    "concentration": (4, _concentration),
}
PAIR_FEATURES = (*HEURISTICS, *_WIDE)
"""Names of `pair_features`: heuristics, the lower and the higher degree, orbits at two and three
hops, and the topological concentration of both ends and of both beside each other."""
OF_GATE = ("aa", "cn", "katz", "ppr", "ra", "sp", "degrees")
"""The eight columns that Link-MoE's gate reads."""


def width(names: Sequence[str] = OF_GATE) -> int:
    """How many columns `pair_features` has; raises InputError for a name it does not know."""
    for name in names:
        if name not in PAIR_FEATURES:
            raise unknown("pair feature", name, PAIR_FEATURES)
    return sum(_WIDE[name][0] if name in _WIDE else 1 for name in names)


def pair_features(graph: Adjacency, pairs: Tensor, names: Sequence[str] = OF_GATE) -> Tensor:
    """(B, F) float32 on the CPU, the same for both orders of a pair.

    Raises InputError for unknown names, and for a pair that is an edge of the graph: its features
    would tell that it is.
    """
    check_hidden(graph, pairs)
    columns = width(names)
    graph, pairs = graph.to("cpu"), pairs.cpu().sort(0).values
    found = [
        (_WIDE[name][1] if name in _WIDE else HEURISTICS[name])(graph, pairs) for name in names
    ]
    parts = [one.view(pairs.shape[1], -1).float() for one in found if pairs.shape[1]]
    return torch.cat(parts, 1) if parts else torch.zeros(pairs.shape[1], columns)


def check_hidden(graph: Adjacency, pairs: Tensor) -> None:
    """Raise InputError unless no pair (2, B) is an edge of the graph."""
    check_pairs(pairs, graph.num_nodes)
    seen = graph.has(pairs)
    if seen.any():
        i, j = pairs[:, seen][:, 0].tolist()
        raise InputError(
            f"{int(seen.sum())} pairs are edges of the graph that is to tell of them, the first "
            f"({i}, {j}); Adjacency.without takes them out"
        )
