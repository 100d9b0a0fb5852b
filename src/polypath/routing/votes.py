"""What the routers over a graph of tokens share: whose vote counts, and what comes of the votes.

Source: Improving Routing in Sparse Mixture of Experts with Graph of Tokens, arXiv 2505.00792.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing.context import RoutingContext
from polypath.routing.scorers import routing_dtype


class Voting(nn.Module):
    """A scorer whose things decide together: p = Σ_j w_j softmax(own scores of j), as log p.

    own: the scorer of a thing by itself, (T, D) to (T, E).
    start: None for the published form; else the share of the votes in the decision is learnt, from
        this number on, and the rest is the thing's own decision. 0 leaves a trained model as it is.
    A subclass gives `votes`. Returns log p (T, E), and each thing's own distribution as its state.
    """

    own: Any

    def __init__(self, own: nn.Module, start: float | None) -> None:
        super().__init__()
        if start is not None and not 0 <= start <= 1:
            raise InputError(f"{type(self).__name__}: start={start}; 0 ≤ start ≤ 1, or None")
        self.own = own
        # (1,), since FSDP spreads no scalars.
        self.share = None if start is None else nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        own = _open(self.own(x, context), context.candidates).softmax(-1)
        rows = layout(x, context)
        u = x.to(routing_dtype(x)).unflatten(0, rows)
        voted = self.votes(u, own.unflatten(0, rows), context).flatten(0, 1)
        if self.share is not None:
            share = self.share.to(own.dtype).clamp(0, 1)
            voted = (1 - share) * own + share * voted
        return voted.clamp_min(torch.finfo(own.dtype).tiny).log(), own

    def centres(self) -> Tensor:
        """(E, D): those of the things' own decisions."""
        return self.own.centres()

    def votes(self, u: Tensor, own: Tensor, context: RoutingContext) -> Tensor:
        """u (B, N, D), own distributions (B, N, E) to voted ones (B, N, E)."""
        raise NotImplementedError


def _open(scores: Tensor, candidates: Tensor | None) -> Tensor:
    """Scores of the experts that may be chosen, which alone are voted for; all where none may."""
    if candidates is None:
        return scores
    return scores.masked_fill(~candidates & candidates.any(-1, keepdim=True), -torch.inf)


def layout(x: Tensor, context: RoutingContext) -> tuple[int, int]:
    """How things (T, D) lie as (sequences, length)."""
    shape = context.shape or (len(x),)
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, shape[0])


def counted(own: Tensor, context: RoutingContext) -> Tensor:
    """(B, N, 1) in own's dtype: 1 for things, 0 for padding."""
    if context.mask is None:
        return torch.ones_like(own[..., :1])
    return context.mask.view(*own.shape[:2], 1).to(own.dtype)


def with_past(told: Tensor, context: RoutingContext) -> Tensor:
    """(B, M, W): what was told of the M things until now, when (B, N, W) is told of the last N."""
    return told if context.remember is None else context.remember(told)
