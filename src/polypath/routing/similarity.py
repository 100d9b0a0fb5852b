"""Similarity-Aware MoE: a thing's experts are those that the things like it would choose.

Source: Improving Routing in Sparse Mixture of Experts with Graph of Tokens, arXiv 2505.00792.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.routing.auxiliary import AuxiliaryLoss
from polypath.routing.context import RoutingContext
from polypath.routing.gates import softmax_gate
from polypath.routing.routers import Router
from polypath.routing.scorers import LinearScorer
from polypath.routing.selection import TopK
from polypath.routing.votes import Voting, counted, with_past

Voters = Literal["all", "surer"]


class SimilarityScorer(Voting):
    """Votes weighted by likeness: S = softmax_j of u_i W u_j / (√D · temperature).

    W: (D, D), the identity at first. temperature=inf: all votes count the same, and there is no W.
    window: only the things of the last `window` places vote, itself among them; the time then grows
        with the length, not with its square. None for all.
    voters: "surer" counts only things whose own decision has no more entropy than the thing's own
        (the J of the paper's bound), "all" the votes of all, as the paper does.
    causal: only earlier things of the sequence vote. Padding never does.
    own, start: see `Voting`.
    Raises InputError when a number is out of range.
    Source: arXiv 2505.00792, Similarity-Aware gate; scaling by √D as in attention.
    """

    def __init__(
        self,
        dim: int,
        own: nn.Module,
        temperature: float = 1.0,
        window: int | None = None,
        voters: Voters = "all",
        causal: bool = True,
        start: float | None = None,
    ) -> None:
        super().__init__(own, start)
        if not temperature > 0:
            raise InputError(f"SimilarityScorer: temperature={temperature}; it must be positive")
        if window is not None and (window < 1 or not causal):
            raise InputError(f"SimilarityScorer: window={window}; 1 or more, of a causal one")
        if voters not in ("all", "surer"):
            raise unknown("voters", voters, ("all", "surer"))
        uniform = math.isinf(temperature)
        self.weight = None if uniform else nn.Parameter(torch.eye(dim))
        self.temperature = temperature
        self.window = window
        self.voters = voters
        self.causal = causal

    def votes(self, u: Tensor, own: Tensor, context: RoutingContext) -> Tensor:
        told = with_past(torch.cat([u, own, counted(own, context)], -1), context)
        keys, votes, valid = told.split([u.shape[-1], own.shape[-1], 1], -1)
        query = torch.zeros_like(u) if self.weight is None else u @ self.weight.to(u.dtype)
        scale = 1.0 if self.weight is None else 1 / (self.temperature * math.sqrt(u.shape[-1]))
        length, whole = u.shape[1], keys.shape[1]
        if self.window is not None and length == whole > self.window:
            return self._in_windows(query, keys, votes, valid[..., 0] > 0, scale)
        if length == whole and self.causal and self._free(context):
            return F.scaled_dot_product_attention(query, keys, votes, is_causal=True, scale=scale)
        places = torch.arange(whole, device=u.device)[None]
        entropy = torch.special.entr(votes.detach()).sum(-1)
        every = _Side(places, valid[..., 0] > 0, entropy)
        last = _Side(places[:, -length:], every.valid[:, -length:], entropy[:, -length:])
        allowed = self._allowed(last, every)
        return F.scaled_dot_product_attention(query, keys, votes, allowed, scale=scale)

    def _free(self, context: RoutingContext) -> bool:
        """Nothing but causality keeps a vote from counting."""
        return context.mask is None and self.window is None and self.voters == "all"

    def _in_windows(
        self, query: Tensor, keys: Tensor, votes: Tensor, valid: Tensor, scale: float
    ) -> Tensor:
        """Blocks of `window` places, which look at themselves and at the block before."""
        window = self.window or 1
        batch, length = valid.shape
        blocks = -(-length // window)
        places = torch.arange(-window, blocks * window, device=query.device)
        behind, ahead = window, blocks * window - length

        def blocked(x: Tensor) -> Tensor:
            """(B, N, ...) to (B · blocks, window, ...)."""
            padded = F.pad(x, (0, 0, 0, ahead)) if x.dim() == 3 else F.pad(x, (0, ahead))
            return padded.unflatten(1, (blocks, window)).flatten(0, 1)

        def paired(x: Tensor) -> Tensor:
            """(B, N, ...) to (B · blocks, 2 · window, ...): the block before, then its own."""
            ends = (0, 0, behind, ahead) if x.dim() == 3 else (behind, ahead)
            rows = F.pad(x, ends).unfold(1, 2 * window, window)
            return (rows.movedim(-1, 2) if x.dim() == 3 else rows).flatten(0, 1)

        entropy = torch.special.entr(votes.detach()).sum(-1)
        own = places[window:].view(1, blocks, window).expand(batch, -1, -1).flatten(0, 1)
        both = places.unfold(0, 2 * window, window).expand(batch, -1, -1).flatten(0, 1)
        allowed = self._allowed(
            _Side(own, blocked(valid), blocked(entropy)),
            _Side(both, paired(valid), paired(entropy)),
        )
        voted = F.scaled_dot_product_attention(
            blocked(query), paired(keys), paired(votes), allowed, scale=scale
        )
        return voted.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]

    def _allowed(self, query: _Side, key: _Side) -> Tensor:
        """(B, N, M) bool: whose vote counts for whom; a thing's own always does."""
        apart = query.places[:, :, None] - key.places[:, None, :]
        allowed = key.valid[:, None, :]
        if self.causal:
            allowed = allowed & (apart >= 0)
        if self.window is not None:
            allowed = allowed & (apart < self.window)
        if self.voters == "surer":
            allowed = allowed & (key.entropy[:, None, :] <= query.entropy[:, :, None])
        return allowed | (apart == 0)

    def extra_repr(self) -> str:
        window = "" if self.window is None else f", window={self.window}"
        return f"temperature={self.temperature}{window}, voters={self.voters!r}"


class _Side(NamedTuple):
    """Things that ask or vote: places (B or 1, N), which are no padding and entropies (B, N)."""

    places: Tensor
    valid: Tensor
    entropy: Tensor


class SimilarityRouter(Router):
    """Top-k of the decisions that alike things come to; by default the kept weights add up to one.

    gate: "softmax-chosen" or "softmax". The other options: see `SimilarityScorer`.
    Raises InputError when k is not within 1..num_experts or a name is unknown.
    Source: Similarity-Aware MoE, arXiv 2505.00792.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        losses: Iterable[AuxiliaryLoss] = (),
        gate: str = "softmax-chosen",
        temperature: float = 1.0,
        window: int | None = None,
        voters: Voters = "all",
        causal: bool = True,
        start: float | None = None,
    ) -> None:
        if not 1 <= k <= num_experts:
            raise InputError(f"SimilarityRouter: k={k} of {num_experts} experts; 1 ≤ k ≤ E")
        own = LinearScorer(dim, num_experts)
        scorer = SimilarityScorer(dim, own, temperature, window, voters, causal, start)
        super().__init__(scorer, TopK(k), softmax_gate(gate), losses)
