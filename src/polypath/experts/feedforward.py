"""Feed-forward experts: a bank of equal two-layer networks with stacked weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from polypath.errors import unknown
from polypath.experts.activations import ACTIVATIONS, Activation
from polypath.experts.projections import projections
from polypath.routing.dispatch import Linear, StreamedNetwork, Weights, dispatch
from polypath.routing.dispatch.memory import Memory
from polypath.routing.dispatch.pieces import Piece
from polypath.routing.record import Routing

Kind = Literal["swiglu", "geglu", "gelu", "relu", "relu2"]
Stage = Literal["gate", "up", "activated", "hidden", "output"]


@dataclass(frozen=True)
class FeedForward(StreamedNetwork):
    """down(activation(up x)), where up gives the gates too if the activation has any.

    Weights, in order: gate_up (2F, D) or up (F, D), its bias, down (D, F), its bias; a bias may be
    None.
    """

    activation: Activation

    def equation(self, rows: Tensor, weights: Weights, linear: Linear) -> Tensor:
        w_in, b_in, w_out, b_out = weights
        return linear(self.activation(linear(rows, w_in, b_in)), w_out, b_out)

    def kept_width(self, weights: Weights) -> int:
        return weights[0].shape[1]

    def forward(
        self,
        piece: Piece,
        rows: Tensor,
        gates: Tensor,
        kept: Tensor,
        weights: Weights,
        memory: Memory,
    ) -> Tensor:
        w_in, b_in, w_out, b_out = weights
        value = memory.take("value", len(piece), kept.shape[1] // self.activation.width)
        self.activation.forward(piece.linear(rows, w_in, b_in, out=kept), out=value)
        if b_out is None and value.shape[1] < rows.shape[1]:  # the narrower place for the gates
            return piece.linear(value.mul_(gates), w_out, None, out=rows)
        return piece.linear(value, w_out, b_out, out=rows).mul_(gates)

    def backward(
        self,
        piece: Piece,
        grad: Tensor,
        rows: Tensor,
        gates: Tensor,
        kept: Tensor,
        weights: Weights,
        grads: Weights,
        memory: Memory,
        rows_wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        w_in, _, w_out, b_out = weights
        w_in_grad, b_in_grad, w_out_grad, b_out_grad = grads
        hidden_grad = memory.take("hidden_grad", len(piece), kept.shape[1])
        value, value_grad = (
            memory.take(name, len(piece), kept.shape[1] // self.activation.width)
            for name in ("value", "value_grad")
        )
        piece.input_grad(grad, w_out, out=value_grad)
        self.activation.backward(value_grad, kept, out=value, hidden_grad=hidden_grad)
        # gate · (W value + b): to its gate, an expert's last bias is a weight of one column.
        gates_grad = value_grad.mul_(value).sum(1, keepdim=True)
        if b_out is not None:
            columns = {e: b_out[e].unsqueeze(1) for e in piece.experts}
            gates_grad += piece.input_grad(grad, columns, out=torch.empty_like(gates_grad))
        if b_out_grad is not None:
            columns = {e: b_out_grad[e].unsqueeze(1) for e in piece.experts}
            piece.add_weight_grad(grad, gates, columns)
        piece.add_weight_grad(grad, value.mul_(gates), w_out_grad)
        hidden_grad.mul_(gates)
        piece.add_bias_grad(hidden_grad, b_in_grad)
        piece.add_weight_grad(hidden_grad, rows, w_in_grad)
        if rows_wanted:
            piece.input_grad(hidden_grad, w_in, out=grad)
        return grad, gates_grad


class FeedForwardExperts(nn.Module):
    """E feed-forward networks D → F → D, in the layout of transformers' experts.

    gate_up_proj: (E, 2F, D) for gated kinds, else up_proj: (E, F, D); down_proj: (E, D, F); with
    `bias`, gate_up_proj_bias (E, 2F) and down_proj_bias (E, D).
    kind: "swiglu" (silu), "geglu" (gelu, tanh form), or without gates "gelu", "relu" and "relu2"
        (Primer, So et al. 2021), or an Activation.
    transposed: the weights are stored as (E, D, 2F) and (E, F, D), as in gpt-oss.
    engine: see `dispatch`.
    """

    network: FeedForward
    down_proj: nn.Parameter
    down_proj_bias: nn.Parameter | None

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden: int,
        kind: Kind | Activation = "swiglu",
        bias: bool = False,
        transposed: bool = False,
        engine: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(kind, Activation):
            if kind not in ACTIVATIONS:
                raise unknown("feed-forward kind", kind, ACTIVATIONS)
            kind = ACTIVATIONS[kind]
        self.network = FeedForward(kind)
        self.transposed = transposed
        self.engine = engine
        self.inner = "gate_up_proj" if kind.width == 2 else "up_proj"
        self._add(self.inner, (num_experts, kind.width * hidden, dim), bias)
        self._add("down_proj", (num_experts, dim, hidden), bias)
        self.reset_parameters()

    def _add(self, name: str, shape: tuple[int, int, int], bias: bool) -> None:
        experts, outs, ins = shape
        stored = (experts, ins, outs) if self.transposed else shape
        self.register_parameter(name, nn.Parameter(torch.empty(stored)))
        offset = nn.Parameter(torch.empty(experts, outs)) if bias else None
        self.register_parameter(f"{name}_bias", offset)

    def reset_parameters(self) -> None:
        """Normal weights that keep the variance of their input, biases zero."""
        for parameter in self.parameters():
            if parameter.dim() == 3:
                fan_in = parameter.shape[1 if self.transposed else 2]
                nn.init.normal_(parameter, std=1 / math.sqrt(fan_in))
            else:
                nn.init.zeros_(parameter)

    def weights(self) -> Weights:
        """The stacked parameters in the order in which `network` reads them, (E, out, in) each."""
        names = (self.inner, f"{self.inner}_bias", "down_proj", "down_proj_bias")
        w_in, b_in, w_out, b_out = (getattr(self, name) for name in names)
        if self.transposed:
            return w_in.mT, b_in, w_out.mT, b_out
        return w_in, b_in, w_out, b_out

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over T things to y (T, D)."""
        return dispatch(x, routing, self.network, self.weights(), self.engine)

    def gates(self) -> Tensor:
        """(E, F, D): each expert's projection inside the activation."""
        w_in, _, w_out, _ = self.weights()
        return w_in[:, self.network.activation.gates(w_out.shape[2])]

    def excitations(self, rows: Tensor, stage: Stage = "gate") -> Tensor:
        """(R, E, ·): what every expert makes of every row (R, D), up to a stage, without biases.

        "gate": the projection inside the activation; "up": the one beside it; "activated": the
        curve of the gate; "hidden": times the up; "output": the expert's output.
        Raises InputError for an unknown stage.
        """
        if stage not in get_args(Stage):
            raise unknown("stage", stage, get_args(Stage))
        w_in, _, w_out, _ = self.weights()
        activation, units = self.network.activation, w_out.shape[2]
        if stage in ("gate", "up"):
            part = activation.gates(units) if stage == "gate" else activation.ups(units)
            return projections(rows, w_in, part)
        hidden = projections(rows, w_in, slice(None))
        if stage == "activated" and activation.width == 2:
            hidden[..., activation.ups(units)] = activation.neutral
        value = activation(hidden)
        if stage == "output":
            return torch.einsum("ref,edf->red", value, w_out.to(rows.dtype))
        return value

    def extra_repr(self) -> str:
        num_experts, *sizes = self.down_proj.shape
        hidden, dim = sizes if self.transposed else reversed(sizes)
        layout = ", transposed" if self.transposed else ""
        return f"{num_experts} × {dim} → {hidden} → {dim}, {self.network.activation}{layout}"
