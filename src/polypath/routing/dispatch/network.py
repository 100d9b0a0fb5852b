"""What one expert computes on the rows it is given: banks provide it, engines run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""rows (R, in), weight (out, in) or (E, out, in), bias (out,) or (E, out) or None, to (R, out)."""

Weights = Sequence[Any]
"""A bank's parameters in the order in which its network reads them, None for one it lacks."""


class Network:
    """One expert's equation, written once for every engine.

    `equation(rows, weights, linear)` maps rows (R, D) to (R, D') and makes every product through
    `linear`. An engine passes the weights of one expert and a plain product, or the stacked weights
    of all experts and a grouped product for rows sorted by expert.
    """

    def equation(self, rows: Tensor, weights: Weights, linear: Linear) -> Tensor:
        raise NotImplementedError
