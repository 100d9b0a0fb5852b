"""Rows of pair states: which pairs (node, query) each layer of NBFNet has to compute.

A row is one pair. A pair that nobody reads is left out; and where edges mean the same to every
query, so is one that the query's head does not reach yet: its state is that of a query without a
head, the background, which is computed once for all.

Shapes: N nodes, B queries, D width, M rows that are computed, K that are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polypath.graphs.kernels import array, inner
from polypath.graphs.passing import Incoming

MOST = 0.3
"""From this share of all pairs on, all are computed: long rows are faster than choice."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Pairs, in the order of nodes, then of queries.

    pairs: (M,) int64, node · B + query, ascending. starts: (N + 1,) int64, the first row of each
    node. runs: (·, 4) int64, rows that are computed together: a node, its first query, one more
    than its last, and the row of the first; each row by itself, or all rows of a node.
    """

    pairs: Tensor
    starts: Tensor
    runs: Tensor

    @classmethod
    def all(cls, nodes: int, queries: int, device: torch.device | None = None) -> Rows:
        ids = torch.arange(nodes + 1, device=device)
        starts, none = ids * queries, torch.zeros_like(ids[:-1])
        runs = torch.stack([ids[:-1], none, none + queries, starts[:-1]], 1)
        return cls(torch.arange(nodes * queries, device=device), starts, runs)

    @classmethod
    def of(cls, mask: Tensor) -> Rows:
        """Of the pairs that a mask (N, B) bool names."""
        node, query = mask.nonzero().unbind(1)
        starts = torch.cat([node.new_zeros(1), mask.sum(1).cumsum(0)])
        runs = torch.stack([node, query, query + 1, torch.arange(len(node)).to(node)], 1)
        return cls(node * mask.shape[1] + query, starts, runs)

    def __len__(self) -> int:
        return len(self.pairs)


@dataclass(frozen=True, eq=False)
class States:
    """The states that are known: rows (K, D), and where (N · B,) int64 a pair has its own."""

    rows: Tensor
    where: Tensor

    def __getitem__(self, pairs: Tensor) -> Tensor:
        """(P, D): of pairs that are known."""
        return self.rows.index_select(0, self.where[pairs])


@dataclass(frozen=True, eq=False)
class Step:
    """What is known after a layer: computed rows, and pairs (K,) that are the background."""

    rows: Rows
    background: Tensor

    @classmethod
    def of(cls, mask: Tensor, need: Tensor) -> Step:
        """Rows where a mask (N, B) bool says so, and the background where else there is need."""
        return cls(Rows.of(mask), (need & ~mask).flatten().nonzero()[:, 0])

    @classmethod
    def all(cls, nodes: int, queries: int, device: torch.device | None = None) -> Step:
        rows = Rows.all(nodes, queries, device)
        return cls(rows, rows.pairs[:0])

    def states(self, rows: Tensor, background: Tensor, queries: int) -> States:
        """From computed rows (M, D) and the background (N, D)."""
        total = len(background) * queries
        if len(rows) == total:
            return States(rows, self.rows.pairs)
        known = torch.cat([self.rows.pairs, self.background])
        places = torch.arange(len(known), device=known.device)
        where = torch.full((total,), -1, device=known.device).index_copy_(0, known, places)
        filled = background.index_select(0, self.background // queries)
        rows = torch.cat([rows, filled])
        # Who reads all rows of a node together finds them together.
        if len(known) == total:
            return States(rows.index_select(0, where), places)
        return States(rows, where)


def plan(edges: Incoming, heads: Tensor, wanted: Tensor, shared: Sequence[bool]) -> list[Step]:
    """Steps 0 … T, so that the last knows the pairs that a mask (N, B) bool wants.

    heads: (N, B) bool, which step 0 has as rows. shared: of each layer, whether its background is
    that of all queries. A row needs, a layer earlier, its own pair and those where its edges come
    from.
    """
    nodes, queries = wanted.shape
    graph = array(edges.starts), array(edges.sources)
    reach = [heads]
    for same in shared:
        reach.append(reach[-1].clone() if same else torch.ones_like(wanted))
        if same:
            _after(*graph, array(reach[-2]), array(reach[-1]))
    steps, need = [], wanted
    for reached in reach[:0:-1]:
        mask = need & reached
        if float(mask.double().mean()) > MOST:
            steps.append(Step.all(nodes, queries))
            need = torch.ones_like(mask)
        else:
            steps.append(Step.of(mask, need))
            need = mask.clone()
            _before(*graph, array(mask), array(need))
    return [Step.of(reach[0], need), *steps[::-1]]


def at_heads(heads: Tensor, nodes: int) -> Tensor:
    """(N, B) bool: where queries begin."""
    found = torch.zeros(nodes, len(heads), dtype=torch.bool, device=heads.device)
    found[heads, torch.arange(len(heads), device=heads.device)] = True
    return found


@inner
def _before(starts: np.ndarray, sources: np.ndarray, mask: np.ndarray, found: np.ndarray) -> None:
    """What a mask's pairs read."""
    for node in range(len(starts) - 1):
        own = mask[node]
        if own.any():
            for edge in range(starts[node], starts[node + 1]):
                target = found[sources[edge]]
                for query in range(len(own)):
                    target[query] |= own[query]


@inner
def _after(starts: np.ndarray, sources: np.ndarray, mask: np.ndarray, found: np.ndarray) -> None:
    """Who reads a mask's pairs."""
    for node in range(len(starts) - 1):
        own = found[node]
        for edge in range(starts[node], starts[node + 1]):
            source = mask[sources[edge]]
            for query in range(len(own)):
                own[query] |= source[query]
