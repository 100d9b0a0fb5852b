"""Routers that remember: a small state of each thing travels up the layers, not along the text.

Source: Layerwise Recurrent Router for Mixture-of-Experts (RMoE), arXiv 2408.06793.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.routing.auxiliary import AuxiliaryLoss
from polypath.routing.context import RoutingContext
from polypath.routing.gates import SoftmaxGate
from polypath.routing.routers import Router
from polypath.routing.scorers import LinearScorer, routing_dtype
from polypath.routing.selection import TopK

Passing = Literal["on", "off", "detached"]
Cell = nn.GRUCell | nn.RNNCell | nn.LSTMCell


class RecurrentScorer(nn.Module):
    """Scores of a state that a recurrent cell makes of a thing and of its state at the layer below.

    state = cell(P x, state below); scores = head(state). Returns both; the experts still see x.
    cell: a GRU cell (the paper's), an RNN cell with tanh, or an LSTM cell, from p to p; layers that
        are given one and the same cell share it.
    projection: P, from D to p without bias; a new one of this layer's own when None.
    head: from states (T, p) to scores; one row per expert when None.
    passing: "on"; "off" (NP: the state below counts as zeros) or "detached" (it has no gradient),
        which are controls.
    residual, residual_detached: this times the scores of the layer below is added, without gradient
        where it is detached; a control as well.
    The first layer, and one above a layer that keeps no state, starts from zeros. Dense layers pass
    the state on as it is.
    Raises InputError for a cell of another kind, or one that does not go from p to p.
    Source: equations 2 to 6; biases and the separate U_n as in the authors' code.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        cell: Cell,
        projection: nn.Linear | None = None,
        head: nn.Module | None = None,
        passing: Passing = "on",
        residual: float = 0.0,
        residual_detached: bool = False,
    ) -> None:
        super().__init__()
        width = cell.hidden_size
        if type(cell) not in _STEPS or cell.input_size != width or not cell.bias:
            raise InputError(
                f"RecurrentScorer: {cell} is not a GRU, RNN or LSTM cell with biases from p to p"
            )
        if passing not in ("on", "off", "detached"):
            raise unknown("passing of states", passing, ("on", "off", "detached"))
        self.cell = cell
        self.projection = projection or nn.Linear(dim, width, bias=False)
        self.head = head or LinearScorer(width, num_experts)
        self.passing = passing
        self.residual = residual
        self.residual_detached = residual_detached

    def forward(self, x: Tensor, context: RoutingContext) -> tuple[Tensor, Tensor]:
        dtype = routing_dtype(x)
        low = F.linear(x.to(dtype), self.projection.weight.to(dtype))
        state = self._step(low, self._below(low, context))
        scores = self.head(state[:, : low.shape[1]], context)
        if self.residual and context.previous is not None:
            below = context.previous.scores
            scores = scores + self.residual * (below.detach() if self.residual_detached else below)
        return scores, state

    def _below(self, low: Tensor, context: RoutingContext) -> Tensor:
        """The state at the layer below, (T, p), or (T, 2p) for an LSTM: its output, its memory."""
        state = None if context.previous is None else context.previous.state
        if self.passing == "off" or state is None:
            return torch.cat([torch.zeros_like(low)] * (1 + isinstance(self.cell, nn.LSTMCell)), 1)
        return (state.detach() if self.passing == "detached" else state).to(low.dtype)

    def _step(self, low: Tensor, before: Tensor) -> Tensor:
        weights = [
            parameter.to(low.dtype)
            for parameter in (
                self.cell.weight_ih,
                self.cell.weight_hh,
                self.cell.bias_ih,
                self.cell.bias_hh,
            )
        ]
        step = _STEPS[type(self.cell)]
        if isinstance(self.cell, nn.LSTMCell):
            return torch.cat(step(low, before.chunk(2, 1), *weights), 1)
        return step(low, before, *weights)

    def extra_repr(self) -> str:
        residual = f", residual={self.residual}" if self.residual else ""
        return f"passing={self.passing!r}{residual}" + ", detached" * self.residual_detached


# The cells' own equations, free of the dtype that the parameters were cast to.
_STEPS: dict[type, Callable[..., Any]] = {
    nn.GRUCell: torch.gru_cell,
    nn.RNNCell: torch.rnn_tanh_cell,
    nn.LSTMCell: torch.lstm_cell,
}


class RecurrentRouter(Router):
    """Top-k of a softmax over recurrent scores; the kept weights add up to one.

    cell, options: see `RecurrentScorer`. Raises InputError when k is not within 1..num_experts.
    Source: RMoE, arXiv 2408.06793; renormalised weights as in the authors' code.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        k: int,
        cell: Cell,
        losses: Iterable[AuxiliaryLoss] = (),
        projection: nn.Linear | None = None,
        head: nn.Module | None = None,
        passing: Passing = "on",
        residual: float = 0.0,
        residual_detached: bool = False,
    ) -> None:
        if not 1 <= k <= num_experts:
            raise InputError(f"RecurrentRouter: k={k} of {num_experts} experts; 1 ≤ k ≤ E")
        scorer = RecurrentScorer(
            dim, num_experts, cell, projection, head, passing, residual, residual_detached
        )
        super().__init__(scorer, TopK(k), SoftmaxGate("chosen"), losses)
