"""Message passing without messages in memory, on a GPU: Triton kernels beside the loops of `fused`.

A program has one node and a block of columns, and walks the edges that enter the node. Gradients of
states and of values are added atomically, so their last bits depend on the order of programs.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from polypath.graphs.fused import OPERATIONS, STATISTICS, wide_values

BLOCK = 128
"""Columns of a program."""


@triton.jit
def _message(x: Any, value: Any, OPERATION: tl.constexpr) -> Any:
    if OPERATION == 0:
        found = x * value
    elif OPERATION == 1:
        found = x + value
    else:
        found = tl.where(x <= value, x, value)
    return found


@triton.jit
def _forward(
    starts: Any,
    sources: Any,
    types: Any,
    h: Any,
    values: Any,
    boundary: Any,
    sums: Any,
    squares: Any,
    highs: Any,
    lows: Any,
    columns: Any,
    value_row: Any,
    value_column: Any,
    OPERATION: tl.constexpr,
    SMOOTH: tl.constexpr,
    SQUARES: tl.constexpr,
    HIGHS: tl.constexpr,
    LOWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    node = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    own = node * columns + column
    start = tl.load(boundary + own, inside, 0.0)
    total, square, high, low = start, start * start, start, start
    for edge in range(tl.load(starts + node), tl.load(starts + node + 1)):
        x = tl.load(h + tl.load(sources + edge) * columns + column, inside, 0.0)
        place = tl.load(types + edge) * value_row + column * value_column
        m = _message(x, tl.load(values + place, inside, 0.0), OPERATION)
        total += m
        square += m * m
        high = tl.where(m > high, m, high)
        low = tl.where(m < low, m, low)
    if SMOOTH:
        tl.store(sums + own, total, inside)
    if SQUARES:
        tl.store(squares + own, square, inside)
    if HIGHS:
        tl.store(highs + own, high, inside)
    if LOWS:
        tl.store(lows + own, low, inside)


@triton.jit
def _backward(
    starts: Any,
    sources: Any,
    types: Any,
    h: Any,
    values: Any,
    boundary: Any,
    highs: Any,
    lows: Any,
    of_sums: Any,
    of_squares: Any,
    of_highs: Any,
    of_lows: Any,
    of_h: Any,
    of_values: Any,
    of_boundary: Any,
    columns: Any,
    value_row: Any,
    value_column: Any,
    OPERATION: tl.constexpr,
    SMOOTH: tl.constexpr,
    SQUARES: tl.constexpr,
    HIGHS: tl.constexpr,
    LOWS: tl.constexpr,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    node = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    own = node * columns + column
    start = tl.load(boundary + own, inside, 0.0)
    plain = tl.full([BLOCK], 0.0, start.dtype)
    double, high_left, low_left, high, low = plain, plain, plain, plain, plain
    if SMOOTH:
        plain = tl.load(of_sums + own, inside, 0.0)
    if SQUARES:
        double = 2 * tl.load(of_squares + own, inside, 0.0)
    slope = plain + double * start
    if HIGHS:
        high = tl.load(highs + own, inside, 0.0)
        high_left = tl.load(of_highs + own, inside, 0.0)
        slope += tl.where(start == high, high_left, 0.0)
        high_left = tl.where(start == high, 0.0, high_left)
    if LOWS:
        low = tl.load(lows + own, inside, 0.0)
        low_left = tl.load(of_lows + own, inside, 0.0)
        slope += tl.where(start == low, low_left, 0.0)
        low_left = tl.where(start == low, 0.0, low_left)
    tl.store(of_boundary + own, slope, inside)
    for edge in range(tl.load(starts + node), tl.load(starts + node + 1)):
        source = tl.load(sources + edge) * columns + column
        place = tl.load(types + edge) * value_row + column * value_column
        x = tl.load(h + source, inside, 0.0)
        value = tl.load(values + place, inside, 0.0)
        m = _message(x, value, OPERATION)
        slope = plain + double * m
        if HIGHS:
            slope += tl.where(m == high, high_left, 0.0)
            high_left = tl.where(m == high, 0.0, high_left)
        if LOWS:
            slope += tl.where(m == low, low_left, 0.0)
            low_left = tl.where(m == low, 0.0, low_left)
        if OPERATION == 0:
            by_x, by_value = slope * value, slope * x
        elif OPERATION == 1:
            by_x, by_value = slope, slope
        else:
            by_x = tl.where(x <= value, slope, 0.0)
            by_value = slope - by_x
        tl.atomic_add(of_h + source, by_x, inside)
        if VALUES:
            row = tl.load(types + edge) * columns
            tl.atomic_add(of_values + row + column, by_value, inside)


class Gather(Function):
    """Those of `STATISTICS` that are asked for, in their order.

    edges: `passing.Incoming`, on the device of all else.
    """

    @staticmethod
    def forward(
        ctx: Any,
        edges: Any,
        h: Tensor,
        values: Tensor,
        boundary: Tensor,
        message: str,
        asked: tuple[str, ...],
    ) -> tuple[Tensor, ...]:
        shape, boundary = h.shape, boundary.flatten(1).contiguous()
        found = [torch.empty_like(boundary) if name in asked else None for name in STATISTICS]
        h = h.flatten(1).contiguous()
        spread = wide_values(values, shape[1]).contiguous()
        _forward[_grid(h)](
            edges.starts,
            edges.sources,
            edges.types,
            h,
            spread,
            boundary,
            *(boundary if part is None else part for part in found),
            h.shape[1],
            *_strides(spread),
            OPERATIONS[message],
            *(part is not None for part in found),
            BLOCK,
        )
        ctx.edges, ctx.message, ctx.asked, ctx.shapes = edges, message, asked, (shape, values.shape)
        ctx.save_for_backward(h, spread, boundary, *found[2:])
        return tuple(part.view(shape) for part in found if part is not None)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        h, spread, boundary, *peaks = ctx.saved_tensors
        shape, of_shape = ctx.shapes
        given = dict(zip(ctx.asked, grads, strict=True))
        slopes = [
            given[name].flatten(1).contiguous() if name in given else None for name in STATISTICS
        ]
        of_h, of_boundary = torch.zeros_like(h), torch.empty_like(h)
        wanted = ctx.needs_input_grad[2]
        of_values = h.new_zeros(of_shape[0] if wanted else 0, h.shape[1])
        _backward[_grid(h)](
            ctx.edges.starts,
            ctx.edges.sources,
            ctx.edges.types,
            h,
            spread,
            boundary,
            *(boundary if part is None else part for part in (*peaks, *slopes)),
            of_h,
            of_values,
            of_boundary,
            h.shape[1],
            *_strides(spread),
            OPERATIONS[ctx.message],
            *(part is not None for part in slopes),
            wanted,
            BLOCK,
        )
        of_values = of_values.view(-1, *shape[1:])
        if len(of_shape) == 2:
            of_values = of_values.sum(1)
        return None, of_h.view(shape), of_values, of_boundary.view(shape), None, None


def _grid(h: Tensor) -> tuple[int, int]:
    return len(h), triton.cdiv(h.shape[1], BLOCK)


def _strides(values: Tensor) -> tuple[int, int]:
    """From a type and from a column to the next."""
    return values.shape[1], 1 if values.shape[1] > 1 else 0
