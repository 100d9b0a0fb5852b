"""Message passing without messages in memory: compiled loops for the CPU, forward and backward.

The columns, B queries times D, are cut into tiles, and each thread walks all edges for its tiles:
rows of a tile stay in the cache, and no two threads write to one place. `passing.reference` is the
same as the equation reads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor
from torch.autograd import Function

from polypath.graphs.kernels import array, inner, kernel

OPERATIONS = {"times": 0, "plus": 1, "minimum": 2}
STATISTICS = ("sum", "squares", "max", "min")
SUM, MAX = STATISTICS.index("sum"), STATISTICS.index("max")
TILE = 512
"""Columns of a tile at most: what a node gathers stays in the nearest cache."""


class Gather(Function):
    """The sum, the maximum or the minimum of messages and boundary, or all `STATISTICS`, in order.

    edges: `passing.Incoming`. asked: a name of what is gathered, or all.
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
        ctx.edges, ctx.message = edges, OPERATIONS[message]
        boundary = boundary.contiguous()
        found = [boundary * boundary if name == "squares" else boundary.clone() for name in asked]
        given = *_graph(edges), *_inputs(h, values), ctx.message, _width(h)
        columns = [*map(_columns, found)]
        if asked == STATISTICS:
            _statistics(*given, *columns)
        else:
            _one(*given, STATISTICS.index(asked[0]), *columns)
        peaks = [part for part, name in zip(found, asked, strict=True) if name in ("max", "min")]
        ctx.save_for_backward(h, values, boundary if peaks else None, *peaks)
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """From gradients of the sums, of the squares and of the peaks, those that there are."""
        h, values, boundary, *peaks = ctx.saved_tensors
        smooth, steep = grads[: len(grads) - len(peaks)], grads[len(grads) - len(peaks) :]
        nothing = _columns(h[:0])
        sums, squares = [*map(_columns, smooth), nothing, nothing][:2]
        of_h, of_boundary = h.new_zeros(h.shape), h.new_zeros(h.shape)
        wide = values.new_zeros(len(values) if ctx.needs_input_grad[2] else 0, *h.shape[1:])
        _gradients(
            *_graph(ctx.edges),
            *_inputs(h, values),
            ctx.message,
            _width(h),
            _columns(h if boundary is None else boundary),
            sums,
            squares,
            _stacked(tuple(peaks), h),
            _stacked(steep, h),
            _columns(of_h),
            _columns(wide),
            _columns(of_boundary),
        )
        of_values = wide.sum(1) if values.ndim == 2 else wide
        return None, of_h, of_values, of_boundary, None, None


def _graph(edges: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return array(edges.starts), array(edges.sources), array(edges.types)


def _inputs(h: Tensor, values: Tensor) -> tuple[np.ndarray, np.ndarray]:
    return _columns(h), array(wide_values(values, h.shape[1]))


def _width(h: Tensor) -> int:
    """Columns of a tile; each thread has one at least, where that is not tiny."""
    return max(16, min(TILE, -(-h.shape[1] * h.shape[2] // torch.get_num_threads())))


def _columns(x: Tensor) -> np.ndarray:
    """(N, B · D), the memory of a contiguous tensor or of a copy."""
    return array(x.flatten(1))


def wide_values(values: Tensor, queries: int) -> Tensor:
    """Values as (R, columns), or (R, 1) where one value is that of all columns."""
    if values.ndim == 2 and values.shape[1] > 1:
        values = values[:, None].expand(-1, queries, -1)
    return values.flatten(1)


def _stacked(parts: tuple[Tensor, ...], h: Tensor) -> np.ndarray:
    """(parts, N, B · D)."""
    columns = h.shape[1] * h.shape[2]
    return array(
        torch.stack(parts).view(-1, len(h), columns) if parts else h.new_zeros(0, 0, columns)
    )


@inner
def messages_of(x: np.ndarray, value: np.ndarray, operation: int, found: np.ndarray) -> None:
    """A row of messages; one loop an operation, for loops with a choice inside stay scalar."""
    if operation == 0:
        for c in range(len(found)):
            found[c] = x[c] * value[c]
    elif operation == 1:
        for c in range(len(found)):
            found[c] = x[c] + value[c]
    else:
        for c in range(len(found)):
            found[c] = x[c] if x[c] <= value[c] else value[c]


@inner
def _row(values: np.ndarray, kind: int, first: int, last: int, buffer: np.ndarray) -> np.ndarray:
    """A type's values in the columns of a tile."""
    if values.shape[1] > 1:
        return values[kind, first:last]
    buffer[:] = values[kind, 0]
    return buffer[: last - first]


@inner
def add_statistics(
    found: np.ndarray, total: np.ndarray, square: np.ndarray, high: np.ndarray, low: np.ndarray
) -> None:
    """A row of messages more."""
    for c in range(len(found)):
        m = found[c]
        total[c] += m
        square[c] += m * m
        high[c] = m if m > high[c] else high[c]
        low[c] = m if m < low[c] else low[c]


@kernel
def _statistics(
    starts: np.ndarray,
    sources: np.ndarray,
    types: np.ndarray,
    h: np.ndarray,
    values: np.ndarray,
    operation: int,
    width: int,
    sums: np.ndarray,
    squares: np.ndarray,
    highs: np.ndarray,
    lows: np.ndarray,
) -> None:
    for tile in prange(-(-h.shape[1] // width)):
        first, last = tile * width, min(tile * width + width, h.shape[1])
        size = last - first
        buffer, found = np.empty(width, h.dtype), np.empty(size, h.dtype)
        own = np.empty((4, size), h.dtype)
        total, square, high, low = own[0], own[1], own[2], own[3]
        for node in range(len(starts) - 1):
            total[:], square[:] = sums[node, first:last], squares[node, first:last]
            high[:], low[:] = highs[node, first:last], lows[node, first:last]
            for edge in range(starts[node], starts[node + 1]):
                source = sources[edge]
                value = _row(values, types[edge], first, last, buffer)
                messages_of(h[source, first:last], value, operation, found)
                add_statistics(found, total, square, high, low)
            sums[node, first:last], squares[node, first:last] = total, square
            highs[node, first:last], lows[node, first:last] = high, low


@kernel
def _one(
    starts: np.ndarray,
    sources: np.ndarray,
    types: np.ndarray,
    h: np.ndarray,
    values: np.ndarray,
    operation: int,
    width: int,
    which: int,
    found: np.ndarray,
) -> None:
    """One of `STATISTICS`, by its place there; not the squares."""
    for tile in prange(-(-h.shape[1] // width)):
        first, last = tile * width, min(tile * width + width, h.shape[1])
        buffer, m = np.empty(width, h.dtype), np.empty(last - first, h.dtype)
        for node in range(len(starts) - 1):
            own = found[node, first:last]
            for edge in range(starts[node], starts[node + 1]):
                value = _row(values, types[edge], first, last, buffer)
                messages_of(h[sources[edge], first:last], value, operation, m)
                if which == SUM:
                    for c in range(last - first):
                        own[c] += m[c]
                elif which == MAX:
                    for c in range(last - first):
                        own[c] = m[c] if m[c] > own[c] else own[c]
                else:
                    for c in range(last - first):
                        own[c] = m[c] if m[c] < own[c] else own[c]


@kernel
def _gradients(
    starts: np.ndarray,
    sources: np.ndarray,
    types: np.ndarray,
    h: np.ndarray,
    values: np.ndarray,
    operation: int,
    width: int,
    boundary: np.ndarray,
    of_sums: np.ndarray,
    of_squares: np.ndarray,
    peaks: np.ndarray,
    of_peaks: np.ndarray,
    of_h: np.ndarray,
    of_values: np.ndarray,
    of_boundary: np.ndarray,
) -> None:
    """Of sums and squares where these have rows; peaks, of_peaks: (extremes, N, columns)."""
    for tile in prange(-(-h.shape[1] // width)):
        first, last = tile * width, min(tile * width + width, h.shape[1])
        size = last - first
        buffer, slope = np.empty(width, h.dtype), np.empty(size, h.dtype)
        found, nowhere = np.empty(size, h.dtype), np.empty(size, h.dtype)
        plain, double = np.zeros(size, h.dtype), np.zeros(size, h.dtype)
        peak, left = np.empty((len(peaks), size), h.dtype), np.empty((len(peaks), size), h.dtype)
        for node in range(len(starts) - 1):
            own, at = of_boundary[node, first:last], boundary[node, first:last]
            if len(of_sums):
                plain[:] = of_sums[node, first:last]
            if len(of_squares):
                for c in range(size):
                    double[c] = of_squares[node, first + c] + of_squares[node, first + c]
            add_slope(at, plain, double, own)
            for which in range(len(peaks)):
                peak[which] = peaks[which, node, first:last]
                left[which] = of_peaks[which, node, first:last]
                take_peak(at, peak[which], left[which], own)
            for edge in range(starts[node], starts[node + 1]):
                x = h[sources[edge], first:last]
                value = _row(values, types[edge], first, last, buffer)
                messages_of(x, value, operation, found)
                slope[:] = 0
                add_slope(found, plain, double, slope)
                for which in range(len(peaks)):
                    take_peak(found, peak[which], left[which], slope)
                of_value = of_values[types[edge], first:last] if len(of_values) else nowhere
                spread(slope, x, value, operation, of_h[sources[edge], first:last], of_value)


@inner
def add_slope(found: np.ndarray, plain: np.ndarray, double: np.ndarray, slope: np.ndarray) -> None:
    """The gradient of a · m + b · m² / 2, as a + b · m."""
    for c in range(len(slope)):
        slope[c] += plain[c] + double[c] * found[c]


@inner
def take_peak(found: np.ndarray, peak: np.ndarray, left: np.ndarray, slope: np.ndarray) -> None:
    """Where what is found is the extreme, it takes the gradient that is left."""
    none = slope.dtype.type(0)
    for c in range(len(peak)):
        at = found[c] == peak[c]
        slope[c] += left[c] if at else none
        left[c] = none if at else left[c]


@inner
def spread(
    slope: np.ndarray,
    x: np.ndarray,
    value: np.ndarray,
    operation: int,
    of_x: np.ndarray,
    of_value: np.ndarray,
) -> None:
    """The gradient of a message to its two parts; of equals, x is the least."""
    none = slope.dtype.type(0)
    if operation == 0:
        for c in range(len(slope)):
            of_x[c] += slope[c] * value[c]
            of_value[c] += slope[c] * x[c]
    elif operation == 1:
        for c in range(len(slope)):
            of_x[c] += slope[c]
            of_value[c] += slope[c]
    else:
        for c in range(len(slope)):
            of_x[c] += slope[c] if x[c] <= value[c] else none
            of_value[c] += none if x[c] <= value[c] else slope[c]
