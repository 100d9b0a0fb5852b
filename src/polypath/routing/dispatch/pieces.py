"""Pieces of a plan that stay in cache, and the products of one piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Views = Sequence[Tensor] | Mapping[int, Tensor]
"""One view per expert of a stacked tensor, by the expert's number."""


@dataclass(frozen=True)
class Piece:
    """Rows start to stop of a plan: all rows of some experts, or a part of one expert's rows.

    sizes: how many rows each of `experts` has here, in order.
    resumed: the rows of this (one) expert began in an earlier piece.
    """

    start: int
    stop: int
    experts: Sequence[int]
    sizes: Sequence[int]
    resumed: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def linear(self, rows: Tensor, weights: Views, biases: Views | None, out: Tensor) -> Tensor:
        """Each expert's rows (R, in) through its weight (out, in) and bias (out,), to (R, out)."""
        for expert, own, result in self._each(rows, out):
            if biases is None:
                torch.mm(own, weights[expert].t(), out=result)
            else:
                torch.addmm(biases[expert], own, weights[expert].t(), out=result)
        return out

    def input_grad(self, grad: Tensor, weights: Views, out: Tensor) -> Tensor:
        """The gradient of linear's rows, (R, in), from that of its result, (R, out)."""
        for expert, own, result in self._each(grad, out):
            torch.mm(own, weights[expert], out=result)
        return out

    def add_weight_grad(self, grad: Tensor, rows: Tensor, sums: Views | None) -> None:
        """Add the gradient of each expert's weight to its sum (out, in), if there is one."""
        if sums is None:
            return
        for expert, own_grad, own_rows in self._each(grad, rows):
            if self.resumed:
                sums[expert].addmm_(own_grad.t(), own_rows)
            else:
                torch.mm(own_grad.t(), own_rows, out=sums[expert])

    def add_bias_grad(self, grad: Tensor, sums: Views | None) -> None:
        """Add the gradient of each expert's bias to its sum (out,), if there is one."""
        if sums is None:
            return
        for expert, own in zip(self.experts, grad.split_with_sizes(self.sizes), strict=True):
            if self.resumed:
                sums[expert].add_(own.sum(0))
            else:
                torch.sum(own, 0, out=sums[expert])

    def _each(self, a: Tensor, b: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Every expert's number, and its rows of both."""
        parts = a.split_with_sizes(self.sizes), b.split_with_sizes(self.sizes)
        return zip(self.experts, *parts, strict=True)


def cut(counts: Sequence[int], rows: int) -> list[Piece]:
    """Pieces of about `rows` rows, in order; counts: (E,) rows per expert.

    Small experts share a piece, so that what is done per row is done for all of them at once; an
    expert with twice as many rows or more is cut into equal parts.
    """
    pieces: list[Piece] = []
    start = stop = 0
    experts: list[int] = []

    def close() -> None:
        nonlocal start, experts
        if experts:
            pieces.append(Piece(start, stop, experts, [counts[e] for e in experts]))
        start, experts = stop, []

    for expert, count in enumerate(counts):
        if count == 0:
            continue
        if stop + count - start > rows:
            close()
        parts = count // rows
        if parts < 2:
            experts.append(expert)
            stop += count
            continue
        for part in range(parts):
            size = (count + part) // parts
            pieces.append(Piece(stop, stop + size, [expert], [size], resumed=part > 0))
            stop += size
        start = stop
    close()
    return pieces
