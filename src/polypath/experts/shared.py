"""The expert that serves everything."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import unknown
from polypath.experts.activations import ACTIVATIONS
from polypath.experts.feedforward import FeedForward, Kind


class SharedExpert(nn.Module):
    """One feed-forward network D → F → D beside the routed ones, without biases.

    kind: as in `FeedForwardExperts`; `up` gives the gates, then the ups, where there are gates.
    Source: DeepSeekMoE (Dai et al. 2024), section 3.2.
    """

    def __init__(self, dim: int, hidden: int, kind: Kind = "swiglu") -> None:
        super().__init__()
        if kind not in ACTIVATIONS:
            raise unknown("feed-forward kind", kind, ACTIVATIONS)
        self.network = FeedForward(ACTIVATIONS[kind])
        self.up = nn.Linear(dim, hidden * self.network.activation.width, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))

    @property
    def fused(self) -> str | None:
        """The name of the linear map that gives gates and ups, None where there are no gates."""
        return "up" if self.network.activation.width == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """x (..., D) to y (..., D)."""
        weights = (self.up.weight, None, self.down.weight, None)
        return self.network.equation(x, weights, F.linear)

    def extra_repr(self) -> str:
        return str(self.network.activation)
