"""Which experts serve which stream of things, seen afterwards: routers are not told.

Source: routing analysis of the ERNIE 5.0 Technical Report, arXiv 2602.04705.
"""

from __future__ import annotations

import math

import torch
from scipy.stats import hypergeom
from torch import Tensor

from polypath.diagnosis.specialisation import contingency
from polypath.errors import InputError
from polypath.routing import Routing


@torch.no_grad()
def stream_usage(routing: Routing, streams: Tensor, count: int) -> Tensor:
    """(S, E) float64: the share of each stream's choices that go to each expert; rows sum to 1.

    streams: (T,) int64 in 0..count - 1; a stream without things has a row of zeros.
    """
    table = contingency(routing, streams, count).T
    return table / table.sum(1, keepdim=True).clamp_min(torch.finfo(table.dtype).tiny)


@torch.no_grad()
def usage_entropy(usage: Tensor) -> Tensor:
    """(S,): how evenly each stream uses the experts, 0 for one alone, 1 for all alike."""
    experts = usage.shape[1]
    if experts < 2:
        return torch.zeros_like(usage[:, 0])
    return torch.special.entr(usage).sum(1) / math.log(experts)


@torch.no_grad()
def usage_overlap(usage: Tensor, share: float = 0.25) -> Tensor:
    """(S, S): of the experts that two streams use most, the part that both do (their IoU).

    share: the part of the experts that is most; of equal ones the first. To be read beside
    `chance_overlap`.
    """
    kept = _most(usage.shape[1], share)
    most = torch.zeros_like(usage)
    most.scatter_(1, usage.argsort(dim=1, descending=True, stable=True)[:, :kept], 1.0)
    both = most @ most.T
    return both / (2 * kept - both)


def chance_overlap(experts: int, share: float = 0.25) -> float:
    """The mean overlap of two sets of experts that are drawn at random."""
    kept = _most(experts, share)
    both = range(kept + 1)
    return float(sum(hypergeom.pmf(n, experts, kept, kept) * n / (2 * kept - n) for n in both))


def _most(experts: int, share: float) -> int:
    if not 0 < share <= 1:
        raise InputError(f"usage overlap: share={share}; above 0 and up to 1 is right")
    return max(1, round(share * experts))
