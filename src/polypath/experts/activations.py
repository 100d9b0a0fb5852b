"""Activations of feed-forward experts: from hidden values to the rows that the last product reads.

Each knows its derivative, so that an engine can run it without recording it. Hidden values are
(R, width · F), the result is (R, F).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


class Activation:
    """A nonlinearity of `width` hidden values per unit: 2 where one gates the other."""

    width: int

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, width · F) to (R, F), differentiable."""
        raise NotImplementedError

    def backward(self, grad: Tensor, hidden: Tensor) -> Tensor:
        """The gradient (R, width · F) with respect to hidden, from that of the result (R, F)."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Curve:
    """A function of one variable: `value(x)`, and `slope(grad, x)`, its derivative times grad."""

    name: str
    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor, Tensor], Tensor]

    def __repr__(self) -> str:
        return self.name


SILU = Curve("silu", F.silu, aten.silu_backward)
GELU = Curve("gelu", F.gelu, aten.gelu_backward)
GELU_TANH = Curve(
    "gelu_tanh",
    lambda x: F.gelu(x, approximate="tanh"),
    lambda grad, x: aten.gelu_backward(grad, x, approximate="tanh"),
)
RELU_SQUARED = Curve("relu2", lambda x: F.relu(x).square(), lambda grad, x: 2 * grad * F.relu(x))


@dataclass(frozen=True)
class Plain(Activation):
    """curve(up)."""

    curve: Curve
    width = 1

    def forward(self, hidden: Tensor) -> Tensor:
        return self.curve.value(hidden)

    def backward(self, grad: Tensor, hidden: Tensor) -> Tensor:
        return self.curve.slope(grad, hidden)


@dataclass(frozen=True)
class Gated(Activation):
    """curve(gate) ⊙ up, the hidden values being all gates, then all ups. Source: Shazeer 2020."""

    curve: Curve
    width = 2

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        return self.curve.value(gate) * up

    def backward(self, grad: Tensor, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        return torch.cat([self.curve.slope(grad * up, gate), grad * self.curve.value(gate)], -1)


@dataclass(frozen=True)
class ClampedSwiGLU(Activation):
    """(up + 1) ⊙ gate ⊙ σ(alpha · gate), both clamped; gates and ups alternate. Source: gpt-oss.

    limit: gates go up to `limit`, ups from -limit to limit.
    """

    alpha: float = 1.702
    limit: float = 7.0
    width = 2

    def forward(self, hidden: Tensor) -> Tensor:
        gate, up = self._clamped(hidden)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))

    def backward(self, grad: Tensor, hidden: Tensor) -> Tensor:
        gate, up = self._clamped(hidden)
        sigma = torch.sigmoid(gate * self.alpha)
        slope = sigma * (1 + self.alpha * gate * (1 - sigma))
        both = torch.stack([grad * (up + 1) * slope, grad * gate * sigma], -1)
        raw_gate, raw_up = hidden[..., ::2], hidden[..., 1::2]
        inside = torch.stack([raw_gate <= self.limit, raw_up.abs() <= self.limit], -1)
        return (both * inside).flatten(-2)

    def _clamped(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = hidden[..., ::2], hidden[..., 1::2]
        return gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)


ACTIVATIONS: dict[str, Activation] = {
    "swiglu": Gated(SILU),
    "geglu": Gated(GELU_TANH),
    "gelu": Plain(GELU),
    "relu2": Plain(RELU_SQUARED),
}
