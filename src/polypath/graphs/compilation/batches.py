"""Graphs side by side as dense matrices, padded to one size, and how they are drawn.

Shapes: B graphs, N nodes of the largest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, edges_of


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Graphs to run an algorithm on; `GraphBatch.of` checks what it is made of.

    weights: (B, N, N), [b, i, j] of the edge i → j; 0 where there is none. sources: (B,) int64,
    where a search begins. sizes: (B,) int64; nodes from there on are padding. positions: (B, N) in
    [0, 1), ascending: by what a network tells nodes apart and breaks ties.
    """

    weights: Tensor
    sources: Tensor
    sizes: Tensor
    positions: Tensor

    @classmethod
    def of(
        cls, weights: Tensor, sources: Tensor | None = None, sizes: Tensor | None = None
    ) -> GraphBatch:
        """sources: nodes 0 by default. sizes: all of N by default. positions: node / size.

        Raises InputError for negative weights, self-loops, edges of padding, and ids that are none.
        """
        if weights.ndim != 3 or weights.shape[1] != weights.shape[2] or not weights.shape[1]:
            raise InputError(f"graphs: weights {tuple(weights.shape)}; (B, N, N) is right, N ≥ 1")
        if not weights.dtype.is_floating_point:
            raise InputError(f"graphs: weights of {weights.dtype}; floating point is right")
        batch, most = weights.shape[:2]
        if sources is None:
            sources = torch.zeros(batch, dtype=torch.int64, device=weights.device)
        if sizes is None:
            sizes = torch.full_like(sources, most)
        for name, value in (("sources", sources), ("sizes", sizes)):
            if value.shape != (batch,) or value.dtype != torch.int64:
                raise InputError(
                    f"graphs: {name} {tuple(value.shape)} of {value.dtype}; ({batch},) of "
                    "torch.int64 is right"
                )
        if batch and not 1 <= int(sizes.min()) <= int(sizes.max()) <= most:
            raise InputError(f"graphs: sizes {sizes.tolist()}; from 1 to {most} is right")
        if batch and (int(sources.min()) < 0 or bool((sources >= sizes).any())):
            raise InputError(f"graphs: sources {sources.tolist()} in sizes {sizes.tolist()}")
        ids = torch.arange(most, device=weights.device)
        found = cls(weights, sources, sizes, (ids / sizes[:, None].double()).clamp_max(1.0))
        if bool((weights < 0).any()) or not bool(weights.isfinite().all()):
            raise InputError("graphs: a weight is negative or not finite; 0 is no edge")
        if bool(weights.diagonal(dim1=1, dim2=2).any()):
            raise InputError("graphs: a node has an edge to itself; none may")
        real = found.nodes
        if bool(weights[~(real[:, :, None] & real[:, None])].any()):
            raise InputError("graphs: an edge of a node that is padding; sizes say which are")
        return found

    @classmethod
    def of_edges(
        cls,
        graph: Any,
        num_nodes: int | None = None,
        source: int = 0,
        weights: Tensor | None = None,
    ) -> GraphBatch:
        """A batch of one, of an edge_index or what carries one; weights (E,), else all 1.

        Self-loops are left out; of edges that repeat, the last counts.
        """
        edge_index, num_nodes = edges_of(graph, num_nodes)
        count = edge_index.shape[1]
        weights = torch.ones(count, dtype=torch.float64) if weights is None else weights
        if weights.shape != (count,):
            raise InputError(f"graphs: weights {tuple(weights.shape)} of {count} edges")
        matrix = weights.new_zeros(1, num_nodes, num_nodes)
        matrix[0, edge_index[0], edge_index[1]] = weights
        matrix[0].fill_diagonal_(0)
        return cls.of(matrix, torch.tensor([source], device=matrix.device))

    def __len__(self) -> int:
        return len(self.weights)

    @property
    def edges(self) -> Tensor:
        """(B, N, N) bool."""
        return self.weights != 0

    @property
    def nodes(self) -> Tensor:
        """(B, N) bool: which are not padding."""
        ids = torch.arange(self.weights.shape[1], device=self.weights.device)
        return ids < self.sizes[:, None]

    @property
    def starts(self) -> Tensor:
        """(B, N) bool: the sources."""
        ids = torch.arange(self.weights.shape[1], device=self.weights.device)
        return ids == self.sources[:, None]

    def relabelled(self, order: Tensor) -> GraphBatch:
        """Nodes in another order (N,), each with its position; for graphs without padding."""
        places = order.argsort()
        return replace(
            self,
            weights=self.weights[:, order][:, :, order],
            sources=places[self.sources],
            positions=self.positions[:, order],
        )

    def to(self, device: str | torch.device) -> GraphBatch:
        return GraphBatch(
            self.weights.to(device),
            self.sources.to(device),
            self.sizes.to(device),
            self.positions.to(device),
        )


def random_graphs(
    sizes: Tensor,
    generator: torch.Generator,
    probability: float = 0.5,
    directed: bool = False,
    weighted: bool = False,
) -> GraphBatch:
    """Erdős–Rényi graphs of sizes (B,) int64, with random sources.

    probability: of each pair's edge; of each direction's where directed. weighted: by U(0, 1], else
    all weights are 1. Source: CLRS-30 (Veličković et al. 2022), samplers.
    Raises InputError for a probability outside of [0, 1].
    """
    if not 0 <= probability <= 1:
        raise InputError(f"probability={probability}; 0 to 1 is right")
    batch, most = len(sizes), int(sizes.max())
    shape = batch, most, most
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) < probability
    weights = drawn.double()
    if weighted:
        weights *= 1 - torch.rand(shape, generator=generator, dtype=torch.float64)
    if directed:
        weights.diagonal(dim1=1, dim2=2).zero_()
    else:
        weights = weights.triu(1)
        weights = weights + weights.mT
    real = torch.arange(most) < sizes[:, None]
    sources = (torch.rand(batch, generator=generator, dtype=torch.float64) * sizes).long()
    return GraphBatch.of(weights * real[:, :, None] * real[:, None], sources, sizes)


def neighbourhoods(
    graph: Adjacency,
    nodes: int,
    batch: int,
    generator: torch.Generator,
    directed: bool = False,
    weighted: bool = False,
) -> GraphBatch:
    """The nodes that a search from a random node meets first, with all edges among them.

    Each neighbourhood has `nodes` nodes, or what can be reached; they are in random order.
    directed: of each edge one direction is kept by chance. weighted: as `random_graphs`.
    Raises InputError for a graph without nodes.
    """
    if not graph.num_nodes:
        raise InputError("neighbourhoods: the graph has no nodes")
    weights = torch.zeros((batch, nodes, nodes), dtype=torch.float64)
    sizes = torch.empty(batch, dtype=torch.int64)
    for b in range(batch):
        seed = int(torch.randint(graph.num_nodes, (1,), generator=generator))
        met = _met(graph, seed, nodes, generator)
        sizes[b] = len(met)
        place = torch.full((graph.num_nodes,), -1)
        place[met] = torch.arange(len(met))
        ends = place[graph.edge_index]
        own = ends[:, (ends >= 0).all(0)]
        weights[b, own[0], own[1]] = 1
    drawn = torch.rand(weights.shape, generator=generator, dtype=torch.float64).triu(1)
    if directed:
        forth = drawn < 0.5
        weights *= forth.triu(1) | ~forth.mT & weights.tril(-1).bool()
    elif weighted:
        weights *= 1 - drawn - drawn.mT
    sources = (torch.rand(batch, generator=generator, dtype=torch.float64) * sizes).long()
    return GraphBatch.of(weights, sources, sizes)


def _met(graph: Adjacency, seed: int, most: int, generator: torch.Generator) -> Tensor:
    """The first nodes that a breadth-first search meets, shuffled."""
    met, at = [seed], 0
    seen = {seed}
    while at < len(met) < most:
        node = met[at]
        own = graph.nodes[int(graph.starts[node]) : int(graph.starts[node + 1])]
        for other in own[torch.randperm(len(own), generator=generator)].tolist():
            if other not in seen and len(met) < most:
                seen.add(other)
                met.append(other)
        at += 1
    return torch.tensor(met)[torch.randperm(len(met), generator=generator)]
