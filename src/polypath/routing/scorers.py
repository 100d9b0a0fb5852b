"""Scorers: how well each expert fits each thing, before anything is chosen.

A scorer maps x (T, D) to scores (T, E), computed in float32 (float64 for float64 inputs) whatever
the model's dtype is: routing in half precision flips choices (Switch Transformers, section 2.4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.routing.context import RoutingContext


def routing_dtype(x: Tensor) -> torch.dtype:
    """The dtype that routers compute in: float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


class LinearScorer(nn.Module):
    """One row of weights per expert: scores = x Wᵀ + b.

    weight: (E, D); bias: (E,) or None.
    """

    def __init__(self, dim: int, num_experts: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_experts, dim))
        self.bias = nn.Parameter(torch.zeros(num_experts)) if bias else None
        nn.init.normal_(self.weight, std=0.1 / math.sqrt(dim))

    def centres(self) -> Tensor:
        """(E, D): a vector for each expert in the space of the things."""
        return self.weight

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        dtype = routing_dtype(x)
        bias = None if self.bias is None else self.bias.to(dtype)
        return F.linear(x.to(dtype), self.weight.to(dtype), bias)


class NoisyLinearScorer(LinearScorer):
    """A linear scorer with learnt Gaussian noise in training: x Wᵀ + ε · softplus(x W_noiseᵀ).

    Source: Shazeer et al. 2017, equation 4; both matrices start at zero.
    """

    def __init__(self, dim: int, num_experts: int) -> None:
        super().__init__(dim, num_experts)
        self.noise = nn.Parameter(torch.zeros(num_experts, dim))
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        scores = super().forward(x, context)
        if not self.training:
            return scores
        spread = F.softplus(F.linear(x.to(scores.dtype), self.noise.to(scores.dtype)))
        epsilon = torch.empty_like(scores).normal_(generator=context.generator)
        return scores + epsilon * spread


class CosineScorer(nn.Module):
    """Cosine of a projected thing and an expert's embedding, over a learnt temperature.

    scores = ⟨P x, e⟩ / (‖P x‖ ‖e‖ τ). Source: X-MoE (Chi et al. 2022), section 3.2, where P goes to
    half as many dimensions as there are experts.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        projection: int | None = None,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        width = projection or max(2, num_experts // 2)
        self.projection = nn.Parameter(torch.empty(width, dim))
        self.weight = nn.Parameter(torch.empty(num_experts, width))
        # (1,), since FSDP spreads no scalars.
        self.log_temperature = nn.Parameter(torch.tensor([math.log(temperature)]))
        nn.init.normal_(self.projection, std=1 / math.sqrt(dim))
        nn.init.orthogonal_(self.weight)

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        dtype = routing_dtype(x)
        low = F.normalize(F.linear(x.to(dtype), self.projection.to(dtype)), dim=-1)
        rows = F.normalize(self.weight.to(dtype), dim=-1)
        return F.linear(low, rows) / self.log_temperature.to(dtype).exp()


class MLPScorer(nn.Module):
    """Two layers with a GELU between: scores = W₂ gelu(W₁ x), without biases.

    hidden: the width between them, D when None.
    """

    def __init__(self, dim: int, num_experts: int, hidden: int | None = None) -> None:
        super().__init__()
        self.inner = LinearScorer(dim, hidden or dim)
        self.outer = LinearScorer(hidden or dim, num_experts)
        nn.init.normal_(self.inner.weight, std=1 / math.sqrt(dim))

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        return self.outer(F.gelu(self.inner(x, context)), context)


class HashScorer(nn.Module):
    """Scores in [0, 1) that depend on the token id and the expert alone; no parameters."""

    def __init__(self, num_experts: int, seed: int = 0) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.seed = seed

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        tokens = context.need("tokens", "HashRouter")
        experts = torch.arange(self.num_experts, device=tokens.device)
        mixed = _mix(_mix(tokens[:, None] + (self.seed << 20)) ^ (experts + 1))
        return (mixed & 0xFFFFFF).to(routing_dtype(x)) / 0x1000000

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, seed={self.seed}"


def _mix(bits: Tensor) -> Tensor:
    """A bijection of int64 that scatters neighbouring ids (multiply and fold, two rounds)."""
    for factor in (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85):
        bits = bits * factor
        bits = bits ^ ((bits >> 29) & 0x7FFFFFFFF)
    return bits
