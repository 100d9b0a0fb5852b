"""Neighbour lists of a simple undirected graph: checked once, read by everything on pairs.

Shapes: N nodes, M stored neighbours (two for each edge), B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError


def edges_of(graph: Any, num_nodes: int | None = None) -> tuple[Tensor, int]:
    """The edge_index (2, E) int64 of a graph, and its number of nodes.

    graph: an edge_index, or anything that carries one (torch-geometric's data, as an example).
    num_nodes: given, else the graph's own, else one more than the largest id.
    Raises InputError for other shapes and dtypes, and ids outside of 0 … N - 1.
    """
    edge_index = graph if isinstance(graph, Tensor) else getattr(graph, "edge_index", None)
    if not isinstance(edge_index, Tensor):
        raise InputError(
            f"a graph is an edge_index tensor or has one; {type(graph).__name__} has none"
        )
    if edge_index.ndim != 2 or len(edge_index) != 2 or edge_index.dtype != torch.int64:
        raise InputError(
            f"edge_index {tuple(edge_index.shape)} of {edge_index.dtype}; "
            "(2, E) of torch.int64 is right, sources above targets"
        )
    low, high = (int(edge_index.min()), int(edge_index.max())) if edge_index.numel() else (0, -1)
    if num_nodes is None:
        own = None if isinstance(graph, Tensor) else getattr(graph, "num_nodes", None)
        num_nodes = high + 1 if own is None else int(own)
    if low < 0 or high >= num_nodes:
        wrong = low if low < 0 else high
        raise InputError(f"edge_index names node {wrong}; ids are 0 … {num_nodes - 1} here")
    return edge_index, num_nodes


def undirected(graph: Any, num_nodes: int | None = None) -> Tensor:
    """An edge_index (2, M) of the same pairs: in both directions, each once, without self-loops.

    Sorted by source, then target.
    """
    edge_index, num_nodes = edges_of(graph, num_nodes)
    source, target = edge_index[:, edge_index[0] != edge_index[1]]
    keys = torch.cat([source * num_nodes + target, target * num_nodes + source]).unique()
    return torch.stack([keys // max(num_nodes, 1), keys % max(num_nodes, 1)])


@dataclass(frozen=True, eq=False)
class Adjacency:
    """Who is next to whom: the neighbours of v are nodes[starts[v] : starts[v + 1]], ascending.

    starts: (N + 1,) int64. nodes: (M,) int64. `Adjacency.of` makes one of a checked graph.
    """

    starts: Tensor
    nodes: Tensor

    @classmethod
    def of(cls, graph: Any, num_nodes: int | None = None) -> Adjacency:
        """Of a simple undirected graph, whose edge_index has every edge in both directions.

        Raises InputError where a self-loop, a duplicate or an edge of one direction is found;
        `undirected` mends these.
        """
        if isinstance(graph, Adjacency):
            return graph
        edge_index, num_nodes = edges_of(graph, num_nodes)
        _check_simple(edge_index, num_nodes)
        return cls._of_keys((edge_index[0] * num_nodes + edge_index[1]).sort().values, num_nodes)

    @classmethod
    def _of_keys(cls, keys: Tensor, num_nodes: int) -> Adjacency:
        bounds = torch.arange(num_nodes + 1, device=keys.device) * num_nodes
        return cls(torch.searchsorted(keys, bounds), keys % max(num_nodes, 1))

    @property
    def num_nodes(self) -> int:
        return len(self.starts) - 1

    @property
    def num_edges(self) -> int:
        return len(self.nodes) // 2

    @property
    def degrees(self) -> Tensor:
        """(N,) int64."""
        return self.starts.diff()

    @property
    def sources(self) -> Tensor:
        """(M,) int64: whose neighbour each entry of `nodes` is."""
        ids = torch.arange(self.num_nodes, device=self.nodes.device)
        return ids.repeat_interleave(self.degrees, output_size=len(self.nodes))

    @property
    def edge_index(self) -> Tensor:
        """(2, M) int64, both directions, sorted."""
        return torch.stack([self.sources, self.nodes])

    @property
    def edges(self) -> Tensor:
        """(2, M / 2) int64: each edge once, the smaller id above."""
        edge_index = self.edge_index
        return edge_index[:, edge_index[0] < edge_index[1]]

    @property
    def keys(self) -> Tensor:
        """(M,) int64, ascending: source · N + target."""
        return self.sources * self.num_nodes + self.nodes

    def has(self, pairs: Tensor) -> Tensor:
        """(B,) bool: which of the pairs (2, B) are edges."""
        check_pairs(pairs, self.num_nodes)
        return self.places(pairs) >= 0

    def places(self, pairs: Tensor) -> Tensor:
        """(B,) int64: where in `nodes` the second of each pair is a neighbour of the first, or -1.

        By bisection of all lists at once.
        """
        i, j = pairs
        if not len(self.nodes):
            return torch.full_like(i, -1)
        last = len(self.nodes) - 1  # where nothing is left to search, a place may be beyond
        low, end = self.starts[i], self.starts[i + 1]
        high = end
        for _ in range(int(self.degrees.max()).bit_length()):
            middle = (low + high) // 2
            below = (low < high) & (self.nodes[middle.clamp_max(last)] < j)
            low, high = torch.where(below, middle + 1, low), torch.where(below, high, middle)
        found = (low < end) & (self.nodes[low.clamp_max(last)] == j)
        return torch.where(found, low, -1)

    def without(self, pairs: Tensor) -> Adjacency:
        """The graph without the edges of the pairs (2, B), in either direction."""
        check_pairs(pairs, self.num_nodes)
        places = self.places(torch.cat([pairs, pairs.flip(0)], 1))
        keep = torch.ones_like(self.nodes, dtype=torch.bool)
        keep[places[places >= 0]] = False
        return self.kept(keep)

    def kept(self, keep: Tensor) -> Adjacency:
        """The lists without the neighbours that a mask (M,) bool does not keep."""
        counts = torch.cat([keep.new_zeros(1), keep]).cumsum(0)
        return Adjacency(counts[self.starts], self.nodes[keep])

    def joined(self, pairs: Tensor) -> Adjacency:
        """The graph with the pairs (2, B) as edges beside its own."""
        check_pairs(pairs, self.num_nodes)
        both = torch.cat([self.edge_index, pairs], 1)
        return Adjacency.of(undirected(both, self.num_nodes), self.num_nodes)

    def to(self, device: str | torch.device) -> Adjacency:
        """On a device; itself where it is there."""
        if self.nodes.device == torch.device(device):
            return self
        return Adjacency(self.starts.to(device), self.nodes.to(device))


def check_pairs(pairs: Tensor, num_nodes: int) -> None:
    """Raise InputError unless pairs are (2, B) int64 ids of two different nodes of a graph."""
    if pairs.ndim != 2 or len(pairs) != 2 or pairs.dtype != torch.int64:
        raise InputError(
            f"pairs {tuple(pairs.shape)} of {pairs.dtype}; (2, B) of torch.int64 is right"
        )
    wrong = ((pairs < 0) | (pairs >= num_nodes)).any(0) | (pairs[0] == pairs[1])
    if wrong.any():
        place = int(wrong.nonzero()[0, 0])
        i, j = pairs[:, place].tolist()
        problem = "a node with itself" if i == j else f"ids are 0 … {num_nodes - 1} here"
        raise InputError(f"pair {place} is ({i}, {j}): {problem}")


def _check_simple(edge_index: Tensor, num_nodes: int) -> None:
    source, target = edge_index
    loops = edge_index[0][source == target]
    if len(loops):
        raise _mend(f"{len(loops)} self-loops, the first at node {int(loops[0])}")
    keys = (source * num_nodes + target).sort().values
    twice = keys[1:][keys[1:] == keys[:-1]]
    if len(twice):
        i, j = divmod(int(twice[0]), num_nodes)
        raise _mend(f"{len(twice)} duplicate edges, the first {i} → {j}")
    single = keys[~torch.isin(keys, target * num_nodes + source)]
    if len(single):
        i, j = divmod(int(single[0]), num_nodes)
        raise _mend(f"{len(single)} edges of one direction, the first {i} → {j} without {j} → {i}")


def _mend(problem: str) -> InputError:
    return InputError(
        f"edge_index has {problem}; a simple undirected graph is needed, as "
        "polypath.graphs.undirected(edge_index) makes it"
    )
