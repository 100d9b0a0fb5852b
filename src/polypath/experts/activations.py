"""Activations of feed-forward experts: from hidden values to the rows that the last product reads.

Hidden values are (R, width · F), the result is (R, F). Each activation knows its derivative, and
writes into memory that it is given, so that an engine can run it without autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

aten = torch.ops.aten


class Activation:
    """A nonlinearity of `width` hidden values per unit: 2 where one gates the other.

    gates, ups: where both are among the hidden values of F units; without gates, `gates` are all.
    neutral: the up that leaves a gate's curve as it is.
    """

    width: int
    neutral = 1.0

    def gates(self, units: int) -> slice:
        return slice(units)

    def ups(self, units: int) -> slice:
        return slice((self.width - 1) * units, self.width * units)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(R, width · F) to (R, F), differentiable."""
        raise NotImplementedError

    def forward(self, hidden: Tensor, out: Tensor) -> Tensor:
        """The same, written to out."""
        raise NotImplementedError

    def backward(self, grad: Tensor, hidden: Tensor, out: Tensor, hidden_grad: Tensor) -> None:
        """Writes the result again, (R, F), and the gradient of hidden, (R, width · F).

        grad: (R, F), that of the result; it stays as it is.
        """
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Curve:
    """A function of one variable.

    value: x to f(x), differentiable. write: the same, from x to out. slope: writes grad · f'(x)
    to out, which may be grad.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    write: Callable[[Tensor, Tensor], Tensor]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]

    def __repr__(self) -> str:
        return self.name


SILU = Curve(
    "silu",
    F.silu,
    lambda x, out: aten.silu.out(x, out=out),
    lambda grad, x, out: aten.silu_backward.grad_input(grad, x, grad_input=out),
)
GELU = Curve(
    "gelu",
    F.gelu,
    lambda x, out: aten.gelu.out(x, out=out),
    lambda grad, x, out: aten.gelu_backward.grad_input(grad, x, grad_input=out),
)
GELU_TANH = Curve(
    "gelu_tanh",
    lambda x: F.gelu(x, approximate="tanh"),
    lambda x, out: aten.gelu.out(x, approximate="tanh", out=out),
    lambda grad, x, out: aten.gelu_backward.grad_input(grad, x, approximate="tanh", grad_input=out),
)
RELU = Curve(
    "relu",
    F.relu,
    lambda x, out: torch.clamp(x, min=0, out=out),
    lambda grad, x, out: aten.threshold_backward.grad_input(grad, x, 0, grad_input=out),
)
RELU_SQUARED = Curve(
    "relu2",
    lambda x: F.relu(x).square(),
    lambda x, out: torch.clamp(x, min=0, out=out).square_(),
    lambda grad, x, out: torch.mul(grad, x.clamp(min=0), out=out).mul_(2),
)


@dataclass(frozen=True)
class Plain(Activation):
    """curve(up)."""

    curve: Curve
    width = 1

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.curve.value(hidden)

    def forward(self, hidden: Tensor, out: Tensor) -> Tensor:
        return self.curve.write(hidden, out)

    def backward(self, grad: Tensor, hidden: Tensor, out: Tensor, hidden_grad: Tensor) -> None:
        self.curve.write(hidden, out)
        self.curve.slope(grad, hidden, hidden_grad)


@dataclass(frozen=True)
class Gated(Activation):
    """curve(gate) ⊙ up, the hidden values being all gates, then all ups. Source: Shazeer 2020."""

    curve: Curve
    width = 2

    def __call__(self, hidden: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        return self.curve.value(gate) * up

    def forward(self, hidden: Tensor, out: Tensor) -> Tensor:
        gate, up = hidden.chunk(2, -1)
        return self.curve.write(gate, out).mul_(up)

    def backward(self, grad: Tensor, hidden: Tensor, out: Tensor, hidden_grad: Tensor) -> None:
        gate, up = hidden.chunk(2, -1)
        gate_grad, up_grad = hidden_grad.chunk(2, -1)
        self.curve.write(gate, out)
        torch.mul(grad, out, out=up_grad)
        torch.mul(grad, up, out=gate_grad)
        self.curve.slope(gate_grad, gate, gate_grad)
        out.mul_(up)


@dataclass(frozen=True)
class ClampedSwiGLU(Activation):
    """(up + 1) ⊙ gate ⊙ σ(alpha · gate), both clamped; gates and ups alternate. Source: gpt-oss.

    limit: gates go up to `limit`, ups from -limit to limit.
    """

    alpha: float = 1.702
    limit: float = 7.0
    width = 2
    neutral = 0.0

    def gates(self, units: int) -> slice:
        return slice(0, None, 2)

    def ups(self, units: int) -> slice:
        return slice(1, None, 2)

    def __call__(self, hidden: Tensor) -> Tensor:
        gate, up = self._clamped(hidden)
        return (up + 1) * (gate * torch.sigmoid(gate * self.alpha))

    def forward(self, hidden: Tensor, out: Tensor) -> Tensor:
        gate, up = self._clamped(hidden)
        torch.mul(gate, self.alpha, out=out).sigmoid_()
        return out.mul_(gate).mul_(up.add_(1))

    def backward(self, grad: Tensor, hidden: Tensor, out: Tensor, hidden_grad: Tensor) -> None:
        gate, up = self._clamped(hidden)
        sigma = torch.sigmoid(gate * self.alpha)
        swish = gate * sigma
        slope = sigma + self.alpha * swish * (1 - sigma)
        raw_gate, raw_up = hidden[..., ::2], hidden[..., 1::2]
        gate_grad, up_grad = hidden_grad[..., ::2], hidden_grad[..., 1::2]
        torch.mul(slope.mul_(up.add_(1)), grad, out=gate_grad).mul_(raw_gate <= self.limit)
        torch.mul(swish, grad, out=up_grad).mul_(raw_up.abs() <= self.limit)
        torch.mul(swish, up, out=out)

    def _clamped(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = hidden[..., ::2], hidden[..., 1::2]
        return gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)


ACTIVATIONS: dict[str, Activation] = {
    "swiglu": Gated(SILU),
    "geglu": Gated(GELU_TANH),
    "gelu": Plain(GELU),
    "relu": Plain(RELU),
    "relu2": Plain(RELU_SQUARED),
}
