"""Neighbours that pairs of nodes share, and those that they do not: one operator for all who ask.

Shapes: N nodes, B pairs, C channels, P found neighbours.
Source: NCN (Wang et al. 2024), overlap operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.kernels import array, inner, kernel

MUCH_LONGER = 16
"""A list is searched instead of read where it is so many times as long as the other."""


@dataclass(frozen=True, eq=False)
class Ragged:
    """Nodes by pair: those of pair b are nodes[starts[b] : starts[b + 1]], ascending.

    starts: (B + 1,) int64. nodes: (P,) int64.
    """

    starts: Tensor
    nodes: Tensor

    @property
    def counts(self) -> Tensor:
        """(B,) int64."""
        return self.starts.diff()

    @property
    def rows(self) -> Tensor:
        """(P,) int64: the pair of each node."""
        ids = torch.arange(len(self.starts) - 1, device=self.nodes.device)
        return ids.repeat_interleave(self.counts, output_size=len(self.nodes))

    def pool(self, h: Tensor, weights: Tensor | None = None) -> Tensor:
        """(B, C): the sum of h (N, C) over each pair's nodes, times weights (P,) where given."""
        if not len(self.nodes):
            return h.new_zeros(len(self.starts) - 1, h.shape[1])
        return F.embedding_bag(
            self.nodes,
            h,
            self.starts,
            mode="sum",
            per_sample_weights=weights,
            include_last_offset=True,
        )


class Overlap(NamedTuple):
    """For pairs (i, j): neighbours of both, of i alone, and of j alone."""

    common: Ragged
    left: Ragged
    right: Ragged


def overlap(adjacency: Adjacency, pairs: Tensor) -> Overlap:
    """Shared and own neighbours of pairs (2, B); linear in the neighbours that are read.

    Raises InputError for pairs of a node with itself, and ids that the graph does not have.
    """
    check_pairs(pairs, adjacency.num_nodes)
    if pairs.device.type != "cpu":
        return reference_overlap(adjacency, pairs)
    graph = array(adjacency.starts), array(adjacency.nodes), array(pairs[0]), array(pairs[1])
    counts = np.zeros((3, pairs.shape[1] + 1), np.int64)
    _count(*graph, counts)
    starts = counts.cumsum(1)
    common, left, right = (np.empty(size, np.int64) for size in starts[:, -1])
    _fill(*graph, starts, common, left, right)
    return Overlap(
        *(
            Ragged(torch.from_numpy(first), torch.from_numpy(nodes))
            for first, nodes in zip(starts, (common, left, right), strict=True)
        )
    )


def common_neighbours(adjacency: Adjacency, pairs: Tensor) -> Ragged:
    """Shared neighbours of pairs (2, B)."""
    return overlap(adjacency, pairs).common


def common_sums(adjacency: Adjacency, pairs: Tensor, values: Tensor) -> Tensor:
    """(B, C): the sums of values (N, C) over shared neighbours, of which no list is made.

    Values are float32 or float64, and have no gradient here; `Ragged.pool` gives one.
    """
    check_pairs(pairs, adjacency.num_nodes)
    if values.ndim != 2 or len(values) != adjacency.num_nodes:
        raise InputError(
            f"values {tuple(values.shape)}; ({adjacency.num_nodes}, C) is right, a row for a node"
        )
    if pairs.device.type != "cpu":
        return reference_overlap(adjacency, pairs).common.pool(values)
    sums = np.zeros((pairs.shape[1], values.shape[1]), array(values[:0]).dtype)
    graph = array(adjacency.starts), array(adjacency.nodes), array(pairs[0]), array(pairs[1])
    _sum(*graph, array(values), sums)
    return torch.from_numpy(sums)


def reference_overlap(adjacency: Adjacency, pairs: Tensor) -> Overlap:
    """The same as sets of keys, pair · N + neighbour; on any device."""
    left, right = (_keys(adjacency, ends) for ends in pairs)
    shared = torch.isin(left, right)
    parts = left[shared], left[~shared], right[~torch.isin(right, left)]
    bounds = torch.arange(pairs.shape[1] + 1, device=pairs.device) * adjacency.num_nodes
    return Overlap(
        *(
            Ragged(torch.searchsorted(keys, bounds), keys % max(adjacency.num_nodes, 1))
            for keys in parts
        )
    )


def _keys(adjacency: Adjacency, ends: Tensor) -> Tensor:
    """(sum of degrees,) ascending: of each pair's end, its neighbours."""
    counts = adjacency.degrees[ends]
    rows = torch.arange(len(ends), device=ends.device).repeat_interleave(counts)
    firsts = (adjacency.starts[ends] - counts.cumsum(0) + counts).repeat_interleave(counts)
    places = firsts + torch.arange(len(rows), device=ends.device)
    return rows * adjacency.num_nodes + adjacency.nodes[places]


@inner
def _place(nodes: np.ndarray, low: int, high: int, wanted: int) -> int:
    """The first place from low to high whose node is not below the wanted one."""
    while low < high:
        middle = (low + high) // 2
        if nodes[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


@inner
def _matches(nodes: np.ndarray, a: int, a_end: int, b: int, b_end: int, own: np.ndarray) -> int:
    """How many nodes two ascending ranges share; `own` gets the places of these in the first."""
    found = 0
    searched = (b_end - b) > MUCH_LONGER * (a_end - a)
    for place in range(a, a_end):
        if searched:
            b = _place(nodes, b, b_end, nodes[place])
        else:
            while b < b_end and nodes[b] < nodes[place]:
                b += 1
        if b == b_end:
            break
        if nodes[b] == nodes[place]:
            if found < len(own):
                own[found] = place
            found += 1
            b += 1
    return found


@inner
def _ranges(starts: np.ndarray, i: int, j: int) -> tuple[int, int, int, int]:
    """The neighbours of i and of j, those of the lower degree first."""
    a, a_end, b, b_end = starts[i], starts[i + 1], starts[j], starts[j + 1]
    if a_end - a > b_end - b:
        return b, b_end, a, a_end
    return a, a_end, b, b_end


@kernel
def _count(
    starts: np.ndarray, nodes: np.ndarray, left: np.ndarray, right: np.ndarray, counts: np.ndarray
) -> None:
    for pair in prange(len(left)):
        a, a_end, b, b_end = _ranges(starts, left[pair], right[pair])
        shared = _matches(nodes, a, a_end, b, b_end, nodes[:0])
        counts[0, pair + 1] = shared
        counts[1, pair + 1] = starts[left[pair] + 1] - starts[left[pair]] - shared
        counts[2, pair + 1] = starts[right[pair] + 1] - starts[right[pair]] - shared


@kernel
def _fill(
    starts: np.ndarray,
    nodes: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    firsts: np.ndarray,
    common: np.ndarray,
    only_left: np.ndarray,
    only_right: np.ndarray,
) -> None:
    for pair in prange(len(left)):
        a, a_end, b, b_end = _ranges(starts, left[pair], right[pair])
        own = common[firsts[0, pair] : firsts[0, pair + 1]]
        _matches(nodes, a, a_end, b, b_end, own)
        for place in range(len(own)):
            own[place] = nodes[own[place]]
        _rest(nodes, starts, left[pair], own, only_left[firsts[1, pair] : firsts[1, pair + 1]])
        _rest(nodes, starts, right[pair], own, only_right[firsts[2, pair] : firsts[2, pair + 1]])


@inner
def _rest(
    nodes: np.ndarray, starts: np.ndarray, node: int, common: np.ndarray, rest: np.ndarray
) -> None:
    """A node's neighbours without the common ones."""
    taken, shared = 0, 0
    for place in range(starts[node], starts[node + 1]):
        if shared < len(common) and common[shared] == nodes[place]:
            shared += 1
        else:
            rest[taken] = nodes[place]
            taken += 1


@kernel
def _sum(
    starts: np.ndarray,
    nodes: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    values: np.ndarray,
    sums: np.ndarray,
) -> None:
    for pair in prange(len(left)):
        a, a_end, b, b_end = _ranges(starts, left[pair], right[pair])
        own = np.empty(a_end - a, np.int64)
        found = _matches(nodes, a, a_end, b, b_end, own)
        for place in own[:found]:
            for channel in range(values.shape[1]):
                sums[pair, channel] += values[nodes[place], channel]
