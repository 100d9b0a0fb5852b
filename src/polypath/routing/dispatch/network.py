"""What one expert computes on the rows it is given: banks provide it, engines run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from polypath.routing.dispatch.memory import Memory
from polypath.routing.dispatch.pieces import Piece

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""rows (R, in), weight (out, in) or (E, out, in), bias (out,) or (E, out) or None, to (R, out)."""

Weights = Sequence[Any]
"""A bank's parameters in the order in which its network reads them, None for one it lacks.

Each is a stacked tensor (E, ...), one expert's, or `Views` of all experts'.
"""


class Network:
    """One expert's equation, written once for every engine.

    `equation(rows, weights, linear)` maps rows (R, D) to (R, D) and makes every product through
    `linear`. An engine passes the weights of one expert and a plain product, or the stacked weights
    of all experts and a grouped product for rows sorted by expert.
    """

    grouped = True
    """Whether the products of all experts can be one; if not, `serve` is all there is."""

    def equation(self, rows: Tensor, weights: Weights, linear: Linear) -> Tensor:
        raise NotImplementedError

    def serve(self, expert: int, rows: Tensor, weights: Weights) -> Tensor:
        """What one expert makes of its rows (R, D); weights: all experts', stacked or in lists."""
        own = [None if w is None else w[expert] for w in weights]
        return self.equation(rows, own, F.linear)


class StreamedNetwork(Network):
    """A network that knows its derivative, for the engine that works piece by piece.

    rows: (R, D), those of the piece. gates: (R, 1), their weights. kept: (R, kept_width), memory
    for what backward reads again. weights, grads: `Views` each, or None.
    """

    def kept_width(self, weights: Weights) -> int:
        """How many values per row backward reads again; weights are stacked."""
        raise NotImplementedError

    def forward(
        self,
        piece: Piece,
        rows: Tensor,
        gates: Tensor,
        kept: Tensor,
        weights: Weights,
        memory: Memory,
    ) -> Tensor:
        """gates ⊙ network(rows), (R, D); fills kept, may overwrite rows."""
        raise NotImplementedError

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
        """The gradients of rows, (R, D), and of gates, (R, 1); adds those of weights to grads.

        grad: (R, D), that of forward's result; may be overwritten.
        rows_wanted: whether the gradient of rows will be read; it may be anything if not.
        """
        raise NotImplementedError
