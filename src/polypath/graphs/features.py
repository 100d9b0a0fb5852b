"""Features of nodes of which most are 0, as their other entries alone.

Shapes: N nodes, F features, K entries that are not 0, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from polypath.graphs.dropout import dropout

SPARSE = 0.1
"""The share of entries up to which they are taken one by one; dense products are faster above."""


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """The entries of a constant matrix (N, F), by row, and where they are by column.

    starts: (N + 1,), columns: (K,), values: (K,). column_starts: (F + 1,) and order: (K,), the
    places of entries by column; rows: (K,), the rows of these.
    """

    starts: Tensor
    columns: Tensor
    values: Tensor
    column_starts: Tensor
    order: Tensor
    rows: Tensor

    @classmethod
    def of(cls, x: Tensor) -> SparseFeatures:
        rows, columns = x.nonzero(as_tuple=True)
        order = columns.argsort(stable=True)
        starts, column_starts = (
            torch.cat([ids.new_zeros(1), ids.bincount(minlength=size).cumsum(0)])
            for ids, size in zip((rows, columns), x.shape, strict=True)
        )
        return cls(starts, columns, x[rows, columns], column_starts, order, rows[order])

    def dropout(self, share: float, training: bool) -> SparseFeatures:
        """With some of the entries 0, as dropout of the whole matrix leaves it."""
        return replace(self, values=dropout(self.values, share, training))

    def linear(self, weight: Tensor) -> Tensor:
        """(N, D): the product with weight (D, F), transposed."""
        return _Product.apply(self, weight)


Features = Tensor | SparseFeatures

_known = WeakTensorKeyDictionary()


def features(x: Tensor) -> Features:
    """x (N, F), or its entries where most are 0 and none wants a gradient, on the CPU.

    What is found for a tensor is remembered for as long as the tensor is there, and unchanged.
    """
    if x.device.type != "cpu" or x.requires_grad or not x.numel():
        return x
    version, found = _known.get(x, (None, x))
    if version != x._version:
        few = int(x.count_nonzero()) <= SPARSE * x.numel()
        # What is remembered for x must not hold x itself.
        found = SparseFeatures.of(x) if few else None
        _known[x] = x._version, found
    return x if found is None else found


def linear(x: Features, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """(N, D): x weight^T + bias, of weight (D, F)."""
    if isinstance(x, Tensor):
        return F.linear(x, weight, bias)
    return x.linear(weight) if bias is None else x.linear(weight) + bias


def thinned(x: Features, share: float, training: bool) -> Features:
    """With dropout, where training."""
    return dropout(x, share, training) if isinstance(x, Tensor) else x.dropout(share, training)


class _Product(Function):
    """x weight^T, and the gradient of weight."""

    @staticmethod
    def forward(ctx: Any, x: SparseFeatures, weight: Tensor) -> Tensor:
        ctx.x = x
        return _sums(x.starts, x.columns, x.values, weight.T.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x: SparseFeatures = ctx.x
        found = _sums(x.column_starts, x.rows, x.values[x.order], grads[0].contiguous())
        return None, found.T


def _sums(starts: Tensor, places: Tensor, values: Tensor, h: Tensor) -> Tensor:
    if not len(places):
        return h.new_zeros(len(starts) - 1, h.shape[1])
    return F.embedding_bag(
        places,
        h,
        starts,
        mode="sum",
        per_sample_weights=values.to(h.dtype),
        include_last_offset=True,
    )
