"""A layer of NBFNet without messages or statistics in memory, with gradients, on the CPU.

The backward pass gathers again instead of keeping statistics, which are the largest part by far.
`layer.Layer.plain` is the same as the equations read.

Shapes: N nodes, B queries, D width, M rows, K known states, R types, S statistics of a row, U
groups of nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from polypath.graphs.fused import OPERATIONS
from polypath.graphs.kernels import array
from polypath.graphs.nbfnet import kernels
from polypath.graphs.nbfnet.rows import Rows
from polypath.graphs.passing import Incoming

AGGREGATES = {"pna": 0, "sum": 1, "mean": 2, "max": 3}
TILE = 512
"""Columns that a thread gathers at once, at most: they stay in the nearest cache."""


@dataclass(frozen=True, eq=False)
class Place:
    """All of a layer that has no gradient.

    where: (N · B,) int64, which state a pair has. heads: (B,) int64. groups: (N,) int64, which
    matrix a node has.
    """

    edges: Incoming
    rows: Rows
    where: Tensor
    heads: Tensor
    groups: Tensor
    message: str
    aggregate: str
    eps: float

    @property
    def graph(self) -> kernels.Graph:
        return array(self.edges.starts), array(self.edges.sources), array(self.edges.types)

    def pairs(self, dim: int) -> kernels.Where:
        """Which pairs are computed, and in which parts."""
        share = -(-len(self.heads) // torch.get_num_threads())
        tile = max(1, min(share, TILE // dim))
        parts = (self.rows.runs, self.where, self.heads, self.groups)
        return *map(array, parts), tile  # type: ignore[return-value]

    @property
    def codes(self) -> tuple[int, int]:
        """The operation and the aggregation."""
        return OPERATIONS[self.message], AGGREGATES[self.aggregate]


class FusedLayer(Function):
    """(M, D): relu(layer_norm((own state and what is gathered) · matrix + shift)) + own state.

    h: (K, D), what is known. values: (R, B, D) or (R, D). states: (B, D), at heads. matrices: (U,
    (1 + S) D, D). shift: (D,), of the product. weight, bias: (D,), of the norm.
    """

    @staticmethod
    def forward(
        ctx: Any,
        place: Place,
        h: Tensor,
        values: Tensor,
        states: Tensor,
        matrices: Tensor,
        shift: Tensor,
        weight: Tensor,
        bias: Tensor,
    ) -> Tensor:
        z, found = (h.new_empty(len(place.rows), h.shape[1]) for _ in range(2))
        kernels.forward(
            place.graph,
            place.pairs(h.shape[1]),
            _inputs(h, _wide(values, states), states),
            _ends(matrices, shift, weight, bias, place.eps),
            *place.codes,
            array(z),
            array(found),
        )
        ctx.place = place
        ctx.save_for_backward(h, values, states, matrices, shift, weight, bias, z)
        return found

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        h, values, states, matrices, shift, weight, bias, z = ctx.saved_tensors
        place: Place = ctx.place
        pairs = place.pairs(h.shape[1])
        parts = -(-len(states) // pairs[-1])
        of_h, of_states = torch.zeros_like(h), torch.zeros_like(states)
        of_values = h.new_zeros(len(values), *states.shape)
        of_matrices = h.new_zeros(parts, *matrices.shape)
        sums = h.new_zeros(parts, 3, h.shape[1])
        kernels.backward(
            place.graph,
            pairs,
            _inputs(h, _wide(values, states), states),
            _ends(matrices, shift, weight, bias, place.eps),
            *place.codes,
            array(matrices.transpose(1, 2)),
            array(z),
            array(grad),
            _inputs(of_h, of_values, of_states),
            array(of_matrices),
            array(sums),
        )
        of_weight, of_bias, of_shift = sums.sum(0)
        of_values = of_values.sum(1) if values.ndim == 2 else of_values
        return None, of_h, of_values, of_states, of_matrices.sum(0), of_shift, of_weight, of_bias


def _wide(values: Tensor, states: Tensor) -> Tensor:
    """(R, B, D)."""
    return values[:, None].repeat(1, len(states), 1) if values.ndim == 2 else values


def _inputs(h: Tensor, values: Tensor, states: Tensor) -> kernels.Inputs:
    return array(h.flatten()), array(values.flatten(1)), array(states)


def _ends(
    matrices: Tensor, shift: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> kernels.Ends:
    """Copies, as numpy does not let go of a parameter's memory, which FSDP wants to free."""
    copies = (array(part.clone()) for part in (matrices, shift, weight, bias))
    return *copies, eps  # type: ignore[return-value]
