"""Feed-forward experts: a bank of equal two-layer networks with stacked weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import unknown
from polypath.routing.dispatch import Linear, Network, dispatch
from polypath.routing.record import Routing

Kind = Literal["swiglu", "geglu", "gelu", "relu2"]
GATED = {"swiglu": F.silu, "geglu": lambda h: F.gelu(h, approximate="tanh")}
PLAIN = {"gelu": F.gelu, "relu2": lambda h: F.relu(h).square()}


@dataclass(frozen=True)
class FeedForward(Network):
    """down(act(up x)), or down(act(gate x) ⊙ up x) for the gated kinds.

    Weights, in order: gate_up (2F, D) or up (F, D), its bias, down (D, F), its bias; a bias may be
    None.
    Sources: SwiGLU and GEGLU, Shazeer 2020; ReLU², Primer (So et al. 2021).
    """

    kind: str

    def equation(self, rows: Tensor, weights: Sequence[Tensor | None], linear: Linear) -> Tensor:
        w_in, b_in, w_out, b_out = weights
        return linear(self.activate(linear(rows, w_in, b_in)), w_out, b_out)

    def activate(self, hidden: Tensor) -> Tensor:
        if self.kind in PLAIN:
            return PLAIN[self.kind](hidden)
        gate, up = hidden.chunk(2, -1)
        return GATED[self.kind](gate) * up


class FeedForwardExperts(nn.Module):
    """E feed-forward networks D → F → D.

    gate_up_proj: (E, 2F, D) for gated kinds, else up_proj: (E, F, D); down_proj: (E, D, F); the
    layout of transformers' experts. kind: "swiglu", "geglu", "gelu" or "relu2".
    """

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden: int,
        kind: Kind = "swiglu",
        bias: bool = False,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        if kind not in GATED | PLAIN:
            raise unknown("feed-forward kind", kind, GATED | PLAIN)
        self.network = FeedForward(kind)
        self.engine = engine
        width = hidden * (2 if kind in GATED else 1)
        self.inner = "gate_up_proj" if kind in GATED else "up_proj"
        self._add(self.inner, (num_experts, width, dim), dim, bias)
        self._add("down_proj", (num_experts, dim, hidden), hidden, bias)

    def _add(self, name: str, shape: tuple[int, int, int], fan_in: int, bias: bool) -> None:
        weight = nn.Parameter(torch.empty(shape))
        nn.init.normal_(weight, std=1 / math.sqrt(fan_in))
        self.register_parameter(name, weight)
        offset = nn.Parameter(torch.zeros(shape[:2])) if bias else None
        self.register_parameter(f"{name}_bias", offset)

    def weights(self) -> tuple[Tensor | None, ...]:
        """The stacked parameters in the order in which `network` reads them."""
        names = (self.inner, f"{self.inner}_bias", "down_proj", "down_proj_bias")
        return tuple(getattr(self, name) for name in names)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over T things to y (T, D)."""
        return dispatch(x, routing, self.network, self.weights(), self.engine)

    def extra_repr(self) -> str:
        num_experts, dim, hidden = self.down_proj.shape
        return f"{num_experts} × {self.network.kind} {dim} → {hidden} → {dim}"
