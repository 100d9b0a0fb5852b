"""Sums over neighbours that are weighted, with a gradient, and the usual weights.

Shapes: N nodes, M stored neighbours, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.kernels import array, inner
from polypath.graphs.overlap import Ragged


class EdgeWeights(NamedTuple):
    """What each stored neighbour and each node itself count: values (M,), own (N,) or None for 0.

    An entry of the row of v and its reverse, in the row of the neighbour, may differ.
    """

    values: Tensor
    own: Tensor | None = None


def propagate(adjacency: Adjacency, values: Tensor, h: Tensor, own: Tensor | None = None) -> Tensor:
    """(N, C): for each node the sum of h (N, C) over its neighbours, times values (M,).

    own: (N,), what the node itself counts; 0 without. Weights are constants: they get no gradient.
    Raises InputError when shapes do not fit together.
    """
    nodes, stored = adjacency.num_nodes, len(adjacency.nodes)
    fits = h.ndim == 2 and len(h) == nodes and values.shape == (stored,)
    if not fits or (own is not None and own.shape != (nodes,)):
        told = "" if own is None else f", own {tuple(own.shape)}"
        raise InputError(
            f"propagate: h {tuple(h.shape)}, values {tuple(values.shape)}{told}; "
            f"({nodes}, C), ({stored},) and ({nodes},) are right here"
        )
    found = _Product.apply(adjacency, values.detach().to(h.dtype), h)
    return found if own is None else found + own.detach().to(h.dtype)[:, None] * h


class _Product(Function):
    """The product of the matrix of values with h, and in the backward of its transpose."""

    @staticmethod
    def forward(ctx: Any, adjacency: Adjacency, values: Tensor, h: Tensor) -> Tensor:
        ctx.adjacency = adjacency
        ctx.save_for_backward(values)
        return _product(adjacency, values, h)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (values,) = ctx.saved_tensors
        back = values[reversed_entries(ctx.adjacency)]
        return None, None, _product(ctx.adjacency, back, grads[0].contiguous())


def _product(adjacency: Adjacency, values: Tensor, h: Tensor) -> Tensor:
    return Ragged(adjacency.starts, adjacency.nodes).pool(h, values)


def reversed_entries(adjacency: Adjacency) -> Tensor:
    """(M,) int64: for each stored neighbour, the place where the same edge is stored the other way.

    Entries are in the order of source, then neighbour, so a stable sort by neighbour is the order
    of their reverses.
    """
    if adjacency.nodes.device.type != "cpu":
        return adjacency.nodes.argsort(stable=True)
    places = np.empty(len(adjacency.nodes), np.int64)
    _reverse(array(adjacency.starts), array(adjacency.nodes), places)
    return torch.from_numpy(places)


@inner
def _reverse(starts: np.ndarray, nodes: np.ndarray, places: np.ndarray) -> None:
    free = starts[:-1].copy()
    for place in range(len(nodes)):
        places[place] = free[nodes[place]]
        free[nodes[place]] += 1


def row_sums(adjacency: Adjacency, values: Tensor) -> Tensor:
    """(N,): of values (M,)."""
    return values.new_zeros(adjacency.num_nodes).index_add(0, adjacency.sources, values)


def ones(adjacency: Adjacency) -> Tensor:
    """(M,) float32."""
    return torch.ones(len(adjacency.nodes), device=adjacency.nodes.device)


def symmetric(adjacency: Adjacency, values: Tensor | None = None) -> EdgeWeights:
    """D^-1/2 (A + I) D^-1/2, with A of values (M,), ones by default, and D its row sums + 1.

    Source: GCN (Kipf and Welling 2017), equation 2.
    """
    scale = (1 + _sums(adjacency, values)).rsqrt()
    sides = _of_rows(adjacency, scale) * scale[adjacency.nodes]
    return EdgeWeights(sides if values is None else values * sides, scale * scale)


def mean_of_neighbours(adjacency: Adjacency, values: Tensor | None = None) -> EdgeWeights:
    """D^-1 A, with D the row sums; a node without neighbours has zeros."""
    sums = _sums(adjacency, values)
    shares = _of_rows(adjacency, torch.where(sums > 0, 1 / sums, 0))
    return EdgeWeights(shares if values is None else values * shares)


def mean_with_self(adjacency: Adjacency, values: Tensor | None = None) -> EdgeWeights:
    """D^-1 (A + I), with D the row sums + 1."""
    own = 1 / (1 + _sums(adjacency, values))
    shares = _of_rows(adjacency, own)
    return EdgeWeights(shares if values is None else values * shares, own)


def _sums(adjacency: Adjacency, values: Tensor | None) -> Tensor:
    """(N,): of the rows of values (M,), which are ones by default."""
    return adjacency.degrees.float() if values is None else row_sums(adjacency, values)


def _of_rows(adjacency: Adjacency, values: Tensor) -> Tensor:
    """(M,): of each stored neighbour, the value (N,) of the node whose it is."""
    return values.repeat_interleave(adjacency.degrees, output_size=len(adjacency.nodes))
