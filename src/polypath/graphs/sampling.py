"""Batches of a large graph: some nodes or pairs, and a sample of what is around them.

torch-geometric's loaders of the same shape need pyg-lib, which is not on PyPI; they are taken where
it is there.
Source: GraphSAGE (Hamilton et al. 2017), algorithm 2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.kernels import array, inner
from polypath.graphs.passing import Incoming


@dataclass(frozen=True, eq=False)
class Sample:
    """Some nodes, and edges that lead towards them.

    nodes: (n,) int64, those that were asked for first, then as they were met. edge_index: (2, e),
    places in `nodes`, sources above targets. edges: (e,), places among the graph's own.
    """

    nodes: Tensor
    edge_index: Tensor
    edges: Tensor


class NeighbourSampler:
    """Draws of neighbours around nodes of a graph, without replacement.

    counts: how many edges into each node are drawn, for the nodes that are asked for, then for
    those that were met, and so on; -1 for all.
    Raises InputError for no counts, and counts below -1.
    """

    def __init__(self, graph: Any, counts: Sequence[int]) -> None:
        if not counts or min(counts) < -1:
            raise InputError(
                f"NeighbourSampler: counts={list(counts)}; as [10, 5], and -1 for all, are right"
            )
        self.graph = Incoming.of(graph)
        self.counts = list(counts)
        # Of each node in a sample, while that is drawn.
        self._places = np.full(self.graph.num_nodes, -1, np.int64)

    def sample(self, nodes: Tensor, generator: torch.Generator) -> Sample:
        """Around different nodes (B,) int64; raises InputError for ids that repeat or are none."""
        total = self.graph.num_nodes
        if nodes.ndim != 1 or nodes.dtype != torch.int64 or len(nodes.unique()) != len(nodes):
            raise InputError(
                f"nodes {tuple(nodes.shape)} of {nodes.dtype}; different ids are right"
            )
        if len(nodes) and not 0 <= int(nodes.min()) <= int(nodes.max()) < total:
            raise InputError(
                f"nodes from {int(nodes.min())} to {int(nodes.max())}; ids are 0 … {total - 1} here"
            )
        starts, sources = array(self.graph.starts), array(self.graph.sources)
        seed = int(torch.randint(2**62, (), generator=generator))
        state = np.array([seed], np.uint64)
        met = [array(nodes)]
        self._places[met[0]] = np.arange(len(nodes))
        known, edges = len(nodes), []
        for count in self.counts:
            around = starts[met[-1] + 1] - starts[met[-1]]
            size = int((around if count < 0 else np.minimum(around, count)).sum())
            found, new = np.empty((3, size), np.int64), np.empty(size, np.int64)
            fresh = _draw(starts, sources, met[-1], count, state, self._places, known, found, new)
            edges.append(found)
            met.append(new[:fresh])
            known += fresh
        source, target, place = torch.from_numpy(np.concatenate(edges, 1))
        every = np.concatenate(met)
        self._places[every] = -1
        return Sample(
            torch.from_numpy(every),
            torch.stack([source, target]),
            self.graph.order[place],
        )


@inner
def _draw(
    starts: np.ndarray,
    sources: np.ndarray,
    nodes: np.ndarray,
    count: int,
    state: np.ndarray,
    local: np.ndarray,
    known: int,
    found: np.ndarray,
    new: np.ndarray,
) -> int:
    """How many new nodes are met; `found` gets source, target and place of each edge."""
    edge, fresh = 0, 0
    for target in nodes:
        first, size = starts[target], starts[target + 1] - starts[target]
        taken = size if count < 0 else min(size, count)
        own = found[2, edge : edge + taken]
        if taken == size:
            for place in range(size):
                own[place] = place
        else:
            _choose(size, state, own)
        for place in range(taken):
            own[place] += first
            source = sources[own[place]]
            if local[source] < 0:
                local[source] = known + fresh
                new[fresh] = source
                fresh += 1
            found[0, edge] = local[source]
            found[1, edge] = local[target]
            edge += 1
    return fresh


@inner
def _choose(size: int, state: np.ndarray, chosen: np.ndarray) -> None:
    """Different numbers below `size`, all sets alike. Source: Floyd, in Bentley 1987."""
    for place in range(len(chosen)):
        last = size - len(chosen) + place
        drawn = _below(last + 1, state)
        for other in chosen[:place]:
            if other == drawn:
                drawn = last
                break
        chosen[place] = drawn


@inner
def _below(size: int, state: np.ndarray) -> int:
    """A number from 0 to size - 1. Source: SplitMix64, Steele et al. 2014."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return int(np.float64(z >> np.uint64(11)) * 2.0**-53 * size)


def neighbour_loader(
    data: Any,
    num_neighbors: Sequence[int],
    batch_size: int = 1,
    input_nodes: Tensor | None = None,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> Iterable[Any]:
    """Batches of nodes of a `torch_geometric.data.Data`, as its NeighborLoader has them.

    A batch is a Data of the sampled nodes and edges with n_id, e_id, input_id and batch_size; the
    nodes that were asked for come first. input_nodes: ids (·,), all by default.
    """
    nodes = torch.arange(data.num_nodes) if input_nodes is None else input_nodes
    if _has_pyg_lib():
        from torch_geometric.loader import NeighborLoader

        return NeighborLoader(
            data,
            num_neighbors=list(num_neighbors),
            batch_size=batch_size,
            input_nodes=nodes,
            shuffle=shuffle,
            generator=generator,
        )
    sampler = NeighbourSampler(data, num_neighbors)

    def batch(ids: Tensor, draws: torch.Generator) -> Any:
        found = _around(data, sampler.sample(nodes[ids], draws), ids)
        found.batch_size = len(ids)
        return found

    return _Loader(len(nodes), batch_size, shuffle, generator, batch)


def link_loader(
    data: Any,
    num_neighbors: Sequence[int],
    edge_label_index: Tensor,
    edge_label: Tensor | None = None,
    batch_size: int = 1,
    shuffle: bool = False,
    generator: torch.Generator | None = None,
) -> Iterable[Any]:
    """Batches of pairs (2, B) with what is around them, as LinkNeighborLoader has them.

    A batch is a Data with n_id, e_id, input_id, edge_label_index in places of n_id, and edge_label
    where labels (B,) are given. The edges of a batch's own pairs are in it where the graph has
    them: `Adjacency.without` takes them out.
    """
    if _has_pyg_lib():
        from torch_geometric.loader import LinkNeighborLoader

        return LinkNeighborLoader(
            data,
            num_neighbors=list(num_neighbors),
            edge_label_index=edge_label_index,
            edge_label=edge_label,
            batch_size=batch_size,
            shuffle=shuffle,
            generator=generator,
        )
    sampler = NeighbourSampler(data, num_neighbors)

    def batch(ids: Tensor, draws: torch.Generator) -> Any:
        nodes, places = edge_label_index[:, ids].unique(return_inverse=True)
        found = _around(data, sampler.sample(nodes, draws), ids)
        found.edge_label_index = places
        if edge_label is not None:
            found.edge_label = edge_label[ids]
        return found

    return _Loader(edge_label_index.shape[1], batch_size, shuffle, generator, batch)


def _around(data: Any, sample: Sample, ids: Tensor) -> Any:
    """The sample as a Data, with its nodes' and edges' own attributes."""
    from torch_geometric.data import Data

    found = Data(edge_index=sample.edge_index, num_nodes=len(sample.nodes))
    for name, value in data:
        if name in ("edge_index", "num_nodes"):
            continue
        if data.is_node_attr(name):
            value = value[sample.nodes]
        elif data.is_edge_attr(name):
            value = value[sample.edges]
        found[name] = value
    found.n_id, found.e_id, found.input_id = sample.nodes, sample.edges, ids
    return found


class _Loader:
    """Batches of places 0 … count - 1, in order or in a new order each time."""

    def __init__(
        self,
        count: int,
        size: int,
        shuffle: bool,
        generator: torch.Generator | None,
        batch: Callable[[Tensor, torch.Generator], Any],
    ) -> None:
        if size < 1:
            raise InputError(f"batch_size={size}; at least 1 is right")
        self.count, self.size, self.shuffle, self.batch = count, size, shuffle, batch
        self.generator = torch.default_generator if generator is None else generator

    def __len__(self) -> int:
        return (self.count + self.size - 1) // self.size

    def __iter__(self) -> Iterator[Any]:
        order = torch.arange(self.count)
        if self.shuffle:
            order = torch.randperm(self.count, generator=self.generator)
        for ids in order.split(self.size):
            yield self.batch(ids, self.generator)


def _has_pyg_lib() -> bool:
    from torch_geometric import typing

    return bool(typing.WITH_PYG_LIB)
