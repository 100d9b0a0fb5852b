"""How well each node's held-out links rank among all nodes, and what that goes along with.

Shapes: N nodes, M nodes with held-out links, C cut-offs, B pairs.
Source: Wang et al. 2024, arXiv 2310.04612, node-level evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency

CUTOFFS = (5, 10, 20, 50, 100)
BLOCK = 1 << 17
"""How many pairs are scored at once, or those of one node where these are more."""


@dataclass(frozen=True, eq=False)
class NodeRanking:
    """Of each node's list of candidates, how much of the truth is among the first k.

    nodes: (M,) int64, ascending. recall, precision, f1, ndcg, hit: (M, C) float64, a column for
    each of the cut-offs. reciprocal_rank: (M,) float64, of the first true candidate.
    """

    nodes: Tensor
    cutoffs: Sequence[int]
    recall: Tensor
    precision: Tensor
    f1: Tensor
    ndcg: Tensor
    hit: Tensor
    reciprocal_rank: Tensor

    @classmethod
    def of_ranks(
        cls, owners: Tensor, ranks: Tensor, cutoffs: Sequence[int] = CUTOFFS
    ) -> NodeRanking:
        """From the ranks (P,), from 1, of true candidates, and the node that each belongs to.

        Precision is of k candidates, though there be fewer; NDCG is a share of what min(k, number
        of true ones) at the top would give. Raises InputError for cut-offs below 1.
        """
        if not cutoffs or min(cutoffs) < 1:
            raise InputError(f"cutoffs={list(cutoffs)}; one number or more, from 1 on, is right")
        nodes, rows, truths = owners.unique(return_inverse=True, return_counts=True)
        limits = torch.tensor(cutoffs, device=ranks.device)
        within = (ranks[:, None] <= limits).double()
        empty = within.new_zeros(len(nodes), len(limits))
        hits = empty.index_add(0, rows, within)
        gains = empty.index_add(0, rows, within / (ranks[:, None] + 1.0).log2())
        places = torch.arange(1, int(truths.max()) + 1 if len(truths) else 1).to(ranks.device)
        ideal = (1 / (places + 1.0).double().log2()).cumsum(0)
        best = ideal[torch.minimum(truths[:, None], limits) - 1]
        recall, precision = hits / truths[:, None], hits / limits
        first = ranks.new_full((len(nodes),), torch.iinfo(ranks.dtype).max)
        first.scatter_reduce_(0, rows, ranks, "amin")
        f1 = 2 * hits / (truths[:, None] + limits)  # = 2 p r / (p + r), and 0 without a hit
        return cls(
            *(nodes, tuple(cutoffs), recall, precision, f1),
            *(gains / best, (hits > 0).double(), 1 / first.double()),
        )

    def entries(self) -> dict[str, Tensor]:
        """(M,) float64 by name, as "recall@5": every family at every cut-off, and "mrr"."""
        families = {name: getattr(self, name) for name in ("recall", "precision", "f1", "ndcg")}
        found = {
            f"{name}@{k}": values[:, column]
            for name, values in (families | {"hit": self.hit}).items()
            for column, k in enumerate(self.cutoffs)
        }
        return found | {"mrr": self.reciprocal_rank}

    def correlations(self, scores: Tensor) -> dict[str, float]:
        """Of every entry with scores (N,) of all nodes, over the nodes that are ranked here."""
        return {name: correlation(scores[self.nodes], own) for name, own in self.entries().items()}


def rank_nodes(
    score: Callable[[Tensor], Tensor],
    truth: Tensor,
    known: Adjacency,
    cutoffs: Sequence[int] = CUTOFFS,
) -> NodeRanking:
    """Rank every other node for each node that has a true link.

    score: from pairs (2, B) of a node and a candidate to (B,), the higher the likelier. truth:
    held-out edges (2, E), each once; either end is ranked for the other. known: the graph whose
    neighbours do not compete, of the edges that were known before. The node itself does not compete
    either (the authors' code lets it). Of equal scores the lower id is first.
    Raises InputError for edges that are known or twice, and scores that are NaN.
    """
    links = Adjacency.of(torch.cat([truth, truth.flip(0)], 1), known.num_nodes)
    seen = known.has(truth)
    if seen.any():
        i, j = truth[:, seen][:, 0].tolist()
        raise InputError(f"{int(seen.sum())} true links are known, the first ({i}, {j})")
    owners, targets = links.edge_index
    nodes, counts = owners.unique_consecutive(return_counts=True)
    ranks = torch.empty_like(owners)
    done = 0
    step = max(1, BLOCK // max(known.num_nodes, 1))
    for own, truths in zip(nodes.split(step), counts.split(step), strict=True):
        scores = _all_scores(score, own, known)
        rows = torch.arange(len(own), device=own.device).repeat_interleave(truths)
        end = done + len(rows)
        ranks[done:end] = torch.cat(
            [
                _ordinal(scores[some], others)
                for some, others in zip(
                    rows.split(step), targets[done:end].split(step), strict=True
                )
            ]
        )
        done = end
    return NodeRanking.of_ranks(owners, ranks, cutoffs)


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of (M,) and (M,); 0 where either is the same everywhere, or there is none."""
    if not len(a) or (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    a, b = (values.double() - values.double().mean() for values in (a, b))
    return float(a @ b / (a.norm() * b.norm()))


def _all_scores(score: Callable[[Tensor], Tensor], nodes: Tensor, known: Adjacency) -> Tensor:
    """(len(nodes), N): what each node gives every candidate; -inf where one does not compete."""
    total = known.num_nodes
    others = torch.arange(total - 1, device=nodes.device)
    columns = others + (others >= nodes[:, None])
    pairs = torch.stack([nodes[:, None].expand_as(columns), columns]).flatten(1)
    found = score(pairs).detach()
    wrong = int(found.isnan().sum())
    if wrong:
        raise InputError(f"{wrong} of {found.numel()} scores of candidates are NaN")
    scores = found.new_full((len(nodes), total), -torch.inf)
    scores.scatter_(1, columns, found.view_as(columns))
    for row, node in enumerate(nodes.tolist()):
        scores[row, known.nodes[known.starts[node] : known.starts[node + 1]]] = -torch.inf
    return scores


def _ordinal(scores: Tensor, truth: Tensor) -> Tensor:
    """(P,) int64, from 1: the place of the true candidate of each row (P, N)."""
    own = scores.gather(1, truth[:, None])
    before = torch.arange(scores.shape[1], device=truth.device) < truth[:, None]
    return 1 + ((scores > own) | ((scores == own) & before)).sum(1)
