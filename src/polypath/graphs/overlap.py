"""Neighbours that pairs of nodes share, and those that they do not: one operator for all who ask.

Shapes: N nodes, B pairs, C channels, P found neighbours.
Source: NCN (Wang et al. 2024), overlap operator.
"""

from __future__ import annotations

from collections.abc import Callable
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
    common = _common(adjacency, pairs)
    starts, nodes, shared = array(adjacency.starts), array(adjacency.nodes), _arrays(common)
    return Overlap(
        common,
        *(
            _filled(_rest, array(counts - common.counts), starts, nodes, array(end), *shared)
            for end, counts in zip(pairs, adjacency.degrees[pairs], strict=True)
        ),
    )


def common_neighbours(adjacency: Adjacency, pairs: Tensor) -> Ragged:
    """Shared neighbours of pairs (2, B)."""
    check_pairs(pairs, adjacency.num_nodes)
    if pairs.device.type != "cpu":
        return reference_overlap(adjacency, pairs).common
    return _common(adjacency, pairs)


def _common(adjacency: Adjacency, pairs: Tensor) -> Ragged:
    """Found in memory that has room for the shorter list of each pair, then put together."""
    rooms = _sums(array(adjacency.degrees[pairs].amin(0)))
    found, counts = np.empty(rooms[-1], np.int64), np.empty(pairs.shape[1], np.int64)
    graph = array(adjacency.starts), array(adjacency.nodes), array(pairs[0]), array(pairs[1])
    _find(*graph, rooms, found, counts)
    return _filled(_pack, counts, rooms, found)


def _filled(fill: Callable[..., None], counts: np.ndarray, *arguments: np.ndarray) -> Ragged:
    """Lists of so many nodes, which a kernel fills."""
    starts = _sums(counts)
    nodes = np.empty(starts[-1], np.int64)
    fill(*arguments, starts, nodes)
    return Ragged(torch.from_numpy(starts), torch.from_numpy(nodes))


def _sums(counts: np.ndarray) -> np.ndarray:
    """(B + 1,): where each list begins, and where the last ends."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def _arrays(lists: Ragged) -> tuple[np.ndarray, np.ndarray]:
    return array(lists.starts), array(lists.nodes)


def common_sums(adjacency: Adjacency, pairs: Tensor, values: Tensor) -> Tensor:
    """(B, C): the sums of values (N, C) over shared neighbours.

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
    _add(*_arrays(_common(adjacency, pairs)), array(values), sums)
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
    """How many nodes two ascending ranges share; `own`, as long as the first, gets these."""
    found = 0
    if (b_end - b) > MUCH_LONGER * (a_end - a):
        for place in range(a, a_end):
            b = _place(nodes, b, b_end, nodes[place])
            if b < b_end and nodes[b] == nodes[place]:
                own[found] = nodes[b]
                found += 1
    else:
        # Without a branch on what is found, which would be guessed wrong half of the time.
        while a < a_end and b < b_end:
            one, other = nodes[a], nodes[b]
            own[found] = one
            found += one == other
            a += one <= other
            b += other <= one
    return found


@inner
def _ranges(starts: np.ndarray, i: int, j: int) -> tuple[int, int, int, int]:
    """The neighbours of i and of j, those of the lower degree first."""
    a, a_end, b, b_end = starts[i], starts[i + 1], starts[j], starts[j + 1]
    if a_end - a > b_end - b:
        return b, b_end, a, a_end
    return a, a_end, b, b_end


@kernel
def _find(
    starts: np.ndarray,
    nodes: np.ndarray,
    left: np.ndarray,
    right: np.ndarray,
    rooms: np.ndarray,
    found: np.ndarray,
    counts: np.ndarray,
) -> None:
    for pair in prange(len(left)):
        a, a_end, b, b_end = _ranges(starts, left[pair], right[pair])
        counts[pair] = _matches(nodes, a, a_end, b, b_end, found[rooms[pair] : rooms[pair + 1]])


@kernel
def _pack(rooms: np.ndarray, found: np.ndarray, starts: np.ndarray, nodes: np.ndarray) -> None:
    for pair in prange(len(starts) - 1):
        for place in range(starts[pair + 1] - starts[pair]):
            nodes[starts[pair] + place] = found[rooms[pair] + place]


@kernel
def _rest(
    starts: np.ndarray,
    nodes: np.ndarray,
    ends: np.ndarray,
    firsts: np.ndarray,
    common: np.ndarray,
    places: np.ndarray,
    rest: np.ndarray,
) -> None:
    """Of each pair's end, the neighbours without the common ones."""
    for pair in prange(len(ends)):
        taken, shared = places[pair], firsts[pair]
        for place in range(starts[ends[pair]], starts[ends[pair] + 1]):
            if shared < firsts[pair + 1] and common[shared] == nodes[place]:
                shared += 1
            else:
                rest[taken] = nodes[place]
                taken += 1


@kernel
def _add(firsts: np.ndarray, found: np.ndarray, values: np.ndarray, sums: np.ndarray) -> None:
    for pair in prange(len(sums)):
        for place in range(firsts[pair], firsts[pair + 1]):
            for channel in range(values.shape[1]):
                sums[pair, channel] += values[found[place], channel]
