"""Attention-Aware MoE: a thing's experts are those that the things it attended to would choose.

Source: Improving Routing in Sparse Mixture of Experts with Graph of Tokens, arXiv 2505.00792.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.routing.auxiliary import AuxiliaryLoss
from polypath.routing.context import Attention, RoutingContext
from polypath.routing.gates import softmax_gate
from polypath.routing.routers import Router
from polypath.routing.scorers import LinearScorer
from polypath.routing.selection import TopK
from polypath.routing.votes import Voting, counted, with_past

Heads = Literal["surest", "all"]
Sides = tuple[Tensor, Tensor]


class AttentionScorer(Voting):
    """Votes weighted by the posterior of who was attended to, given what the attention gave.

    A'_h[i, j] ∝ A_h[i, j] · exp(−‖ū_i − v'_hj‖² / (2 σ²)), v'_hj the value of j under head h as the
    output sees it, times the number of heads; ū_i the attention's output.
    sigma: in units of ‖ū_i‖ where `relative`, as it is else; inf takes the attention as it is.
    heads: "surest" listens to the head whose A' has the lowest mean entropy over the things of the
        sequence so far, the paper's practical form made causal; "all" to the posterior over heads.
    detach: no gradient goes from the routing into the attention.
    Needs `attention` in the context. own, start: see `Voting`.
    Raises InputError when a number is out of range or a name unknown.
    Source: arXiv 2505.00792, Attention-Aware gate.
    """

    needs_attention = True

    def __init__(
        self,
        own: nn.Module,
        sigma: float = 1.0,
        heads: Heads = "surest",
        relative: bool = True,
        detach: bool = False,
        start: float | None = None,
    ) -> None:
        super().__init__(own, start)
        if not sigma > 0:
            raise InputError(f"AttentionScorer: sigma={sigma}; it must be positive")
        if heads not in ("surest", "all"):
            raise unknown("heads", heads, ("surest", "all"))
        self.sigma = sigma
        self.heads = heads
        self.relative = relative
        self.detach = detach

    def votes(self, u: Tensor, own: Tensor, context: RoutingContext) -> Tensor:
        attention = self._attention(own, context)
        width = self._width(attention)
        sides = None if width is None else sides_of(attention, width)
        if self.heads == "all":
            logits = log_posterior(attention, sides).transpose(1, 2)
            weights = logits.flatten(2).softmax(-1).view(logits.shape).sum(2)
            return weights @ with_past(own, context)[:, -weights.shape[-1] :]
        entropy = head_entropy(attention, sides)
        told = with_past(torch.cat([own, entropy, counted(own, context)], -1), context)
        votes, entropy, valid = told.split([own.shape[-1], entropy.shape[-1], 1], -1)
        mean = (entropy * valid).cumsum(1) / valid.cumsum(1).clamp_min(1)
        surest = mean[:, -own.shape[1] :].argmin(-1)
        weights = log_posterior_of(attention, sides, surest).softmax(-1)
        return weights @ votes[:, -weights.shape[-1] :]  # a sliding window has forgotten the others

    def _attention(self, own: Tensor, context: RoutingContext) -> Attention:
        attention: Attention = context.need("attention", "AttentionRouter")
        batch, _, length, _ = attention.probabilities.shape
        if (batch, length) != own.shape[:2]:
            raise InputError(
                f"AttentionRouter: attention of {batch} sequences of {length} things; the things "
                f"are {own.shape[0]} sequences of {own.shape[1]}"
            )
        attention = attention.to(own.dtype)
        return attention.detach() if self.detach else attention

    def _width(self, attention: Attention) -> Tensor | None:
        """(B, N, 1), σ² of each thing; None where it is infinite."""
        if math.isinf(self.sigma):
            return None
        square = attention.output.square().sum(-1, keepdim=True)
        unit = square if self.relative else torch.ones_like(square)
        return (self.sigma**2 * unit).clamp_min(torch.finfo(unit.dtype).eps)

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}, heads={self.heads!r}, relative={self.relative}"


def log_posterior(attention: Attention, sides: Sides | None) -> Tensor:
    """(B, H, N, M): log A_h[i, j] − ‖ū_i − v'_hj‖² / (2 width_i), but for a constant of each i.

    sides: of a width, see `sides_of`; None for an infinite one.
    """
    logits = _log(attention.probabilities)
    if sides is None:
        return logits
    query, keys = sides
    return logits + query.transpose(1, 2) @ keys.transpose(1, 2).mT


def log_posterior_of(attention: Attention, sides: Sides | None, heads: Tensor) -> Tensor:
    """(B, N, M): `log_posterior` of each thing under its head, (B, N) int64."""
    batch, length = heads.shape
    rows = torch.arange(batch, device=heads.device)[:, None]
    places = torch.arange(length, device=heads.device)
    logits = _log(attention.probabilities[rows, heads, places])
    if sides is None:
        return logits
    query, keys = sides
    own = query[rows, places, heads]
    if own.is_cpu:
        told = zip(own, keys, heads, strict=True)
        return logits + torch.stack([_by_head(*sequence) for sequence in told])
    # One product over all heads, of queries that are zero but for their head.
    only = F.one_hot(heads, query.shape[2]).to(query.dtype)
    return logits + (query * only[..., None]).flatten(2) @ keys.flatten(2).mT


def _by_head(query: Tensor, keys: Tensor, heads: Tensor) -> Tensor:
    """(N, M): queries (N, W) of things times the keys (M, H, W) of their heads, (N,) int64."""
    order = heads.argsort(stable=True)
    counts = torch.bincount(heads, minlength=keys.shape[1]).tolist()
    products = [
        of_head @ keys[:, head].T for head, of_head in enumerate(query[order].split(counts))
    ]
    return torch.cat(products)[order.argsort()]


@torch.no_grad()
def head_entropy(attention: Attention, sides: Sides | None) -> Tensor:
    """(B, N, H), nats: of each head's posterior over who was attended to."""
    if sides is None:
        return torch.special.entr(attention.probabilities).sum(-1).transpose(1, 2)
    query, keys = (side.transpose(1, 2) for side in sides)
    # On a CPU one sequence after another, which stays in its cache.
    parts = len(query) if query.is_cpu else 1
    told = (query.chunk(parts), keys.chunk(parts), attention.probabilities.chunk(parts))
    return torch.cat([_entropy(*part) for part in zip(*told, strict=True)]).transpose(1, 2)


def _entropy(query: Tensor, keys: Tensor, probabilities: Tensor) -> Tensor:
    """(B, H, N), nats: of softmax(log probabilities + query · keys).

    log Z less the mean logit, where log Z is the highest logit less the log of its probability. The
    exponentials of softmax are much faster than those of exp where most are 0, as here, and the
    logarithm of 0 is slower than any other. Probabilities of 0 stay out.
    """
    if not probabilities.numel():
        return probabilities.new_zeros(probabilities.shape[:-1])
    finfo = torch.finfo(probabilities.dtype)
    logits = probabilities.clamp_min(finfo.tiny).log_()
    F.threshold(logits, math.log(finfo.tiny) + 1e-3, finfo.min, inplace=True)
    logits.add_(query @ keys.mT).clamp_min_(finfo.min)
    posterior = logits.softmax(-1)
    total = logits.amax(-1) - posterior.amax(-1).log()
    return total - posterior.mul_(logits).sum(-1)


def _log(probabilities: Tensor) -> Tensor:
    """The logarithm, without the gradient of 0."""
    smallest = torch.finfo(probabilities.dtype).tiny
    return probabilities.clamp_min(smallest).log().masked_fill_(probabilities == 0, -torch.inf)


def sides_of(attention: Attention, width: Tensor) -> Sides:
    """(B, N, H, W + 1) and (B, M, H, W + 1), whose products are (ū · v' − ‖v'‖² / 2) / width.

    width: (B, N, 1). v'_h = H · W_h v_h is never made: ū is brought to each head's space instead,
    and the length of v' is read from W_hᵀ W_h.
    """
    heads = attention.probabilities.shape[1]
    values = attention.values.repeat_interleave(heads // attention.values.shape[1], 1)
    maps = attention.projection.unflatten(1, (heads, -1)).transpose(0, 1)  # (H, D, W)
    query = (attention.output @ attention.projection).unflatten(2, (heads, -1)) * heads
    square = ((values @ (maps.mT @ maps)) * values).sum(-1, keepdim=True) * heads**2
    query = torch.cat([query, torch.full_like(query[..., :1], -0.5)], -1) / width[..., None]
    return query, torch.cat([values, square], -1).transpose(1, 2)


class AttentionRouter(Router):
    """Top-k of what the attended things would choose; by default the kept weights add up to one.

    gate: "softmax-chosen" or "softmax". The other options: see `AttentionScorer`.
    Raises InputError when k is not within 1..num_experts or a name is unknown.
    Source: Attention-Aware MoE, arXiv 2505.00792.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        losses: Iterable[AuxiliaryLoss] = (),
        gate: str = "softmax-chosen",
        sigma: float = 1.0,
        heads: Heads = "surest",
        relative: bool = True,
        detach: bool = False,
        start: float | None = None,
    ) -> None:
        if not 1 <= k <= num_experts:
            raise InputError(f"AttentionRouter: k={k} of {num_experts} experts; 1 ≤ k ≤ E")
        own = LinearScorer(dim, num_experts)
        scorer = AttentionScorer(own, sigma, heads, relative, detach, start)
        super().__init__(scorer, TopK(k), softmax_gate(gate), losses)
