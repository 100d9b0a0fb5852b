"""Experts whose first projection is of low rank, so that a short reading of a thing tells of it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.experts.activations import ACTIVATIONS
from polypath.experts.feedforward import FeedForward, Kind
from polypath.routing.dispatch import Weights, dispatch
from polypath.routing.record import Routing


class FactoredExperts(nn.Module):
    """E feed-forward networks D → F → D whose projection inside the activation is B_e A_e.

    gate_in: (E, r, D), A; gate_out: (E, F, r), B; up_proj: (E, F, D) for gated kinds, else None;
        down_proj: (E, D, F).
    rank: r; D F / (D + F) when None, which keeps the number of parameters.
    kind, engine: as in `FeedForwardExperts`.
    Source: Autonomy-of-Experts Models, arXiv 2501.13074.
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden: int,
        kind: Kind = "swiglu",
        rank: int | None = None,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        if kind not in ACTIVATIONS:
            raise unknown("feed-forward kind", kind, ACTIVATIONS)
        rank = max(1, round(dim * hidden / (dim + hidden))) if rank is None else rank
        if rank < 1:
            raise InputError(f"FactoredExperts: rank={rank}; at least 1 is needed")
        self.network = FeedForward(ACTIVATIONS[kind])
        self.engine = engine
        self.gate_in = nn.Parameter(torch.empty(num_experts, rank, dim))
        self.gate_out = nn.Parameter(torch.empty(num_experts, hidden, rank))
        gated = self.network.activation.width == 2
        self.up_proj = nn.Parameter(torch.empty(num_experts, hidden, dim)) if gated else None
        self.down_proj = nn.Parameter(torch.empty(num_experts, dim, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal weights that keep the variance of their input."""
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[2]))

    def readings(self, x: Tensor) -> Tensor:
        """(T, E, r): A_e x of every expert, of x (T, D), in x's dtype."""
        return torch.einsum("td,erd->ter", x, self.gate_in.to(x.dtype))

    def weights(self) -> Weights:
        """The parameters in the order in which `network` reads them, the factors multiplied."""
        gate = self.gate_out @ self.gate_in
        w_in = gate if self.up_proj is None else torch.cat([gate, self.up_proj], 1)
        return w_in, None, self.down_proj, None

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over T things to y (T, D)."""
        return dispatch(x, routing, self.network, self.weights(), self.engine)

    def extra_repr(self) -> str:
        num_experts, rank, dim = self.gate_in.shape
        hidden = self.gate_out.shape[1]
        return f"{num_experts} × {dim} → {rank} → {hidden} → {dim}, {self.network.activation}"
