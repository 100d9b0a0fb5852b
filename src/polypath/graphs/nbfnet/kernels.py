"""A layer of NBFNet in one walk over its rows, forward and backward, compiled for the CPU.

A run of queries at a node gathers, is multiplied by the node's matrix, and ends, in the nearest
cache. Each thread has queries of its own, so that no two write to one place.

Shapes: N nodes, B queries, D width, M rows, K known states, R types of edges, S statistics of a
row, U groups of nodes with a matrix in common, P parts of the queries.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from polypath.graphs.fused import messages_of, spread
from polypath.graphs.kernels import kernel
from polypath.graphs.nbfnet.endings import add_outer, add_product, end, end_back
from polypath.graphs.nbfnet.gathering import add, begin, begin_back, rows_of, slope_at, slopes_of

Graph = tuple[np.ndarray, np.ndarray, np.ndarray]
"""starts (N + 1,), sources and types of edges."""
Where = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, int]
"""runs (·, 4), see `rows.Rows`; where (N · B,) a pair's state is, for those of a run one after the
other at every node; heads (B,); groups (N,) of nodes; how many queries are a part."""
Inputs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""h (K · D,), values (R, B · D), queries (B, D)."""
Ends = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, float]
"""matrices (U, (1 + S) · D, D); shift, weight and bias (D,); what is added to the variance."""


@kernel
def forward(
    graph: Graph,
    where: Where,
    inputs: Inputs,
    ends: Ends,
    operation: int,
    aggregate: int,
    z: np.ndarray,
    found: np.ndarray,
) -> None:
    """Set z and found, (M, D): what is normalised, and the next states."""
    starts, sources, types = graph
    runs, places, heads, groups, tile = where
    h, values, queries = inputs
    matrices, shift, weight, bias, eps = ends
    count, width = queries.shape
    for part in prange(-(-count // tile)):
        low, high = part * tile, min(part * tile + tile, count)
        m, own = np.empty(tile * width, h.dtype), np.empty((4, tile * width), h.dtype)
        space, normal = np.empty((tile, matrices.shape[1]), h.dtype), np.empty(width, h.dtype)
        for run in range(len(runs)):
            node, first, last, row = runs[run]
            row -= first
            first, last = max(first, low), min(last, high)
            if first >= last:
                continue
            a, b, size = first * width, last * width, (last - first) * width
            begin(node, heads[first:last], queries[first:last], own)
            for edge in range(starts[node], starts[node + 1]):
                place = places[sources[edge] * count + first] * width
                x, value = h[place : place + size], values[types[edge], a:b]
                messages_of(x, value, operation, m[:size])
                add(m[:size], aggregate, own)
            place = places[node * count + first] * width
            rows, degree = space[: last - first], starts[node + 1] - starts[node] + 1
            rows_of(h[place : place + size], own, degree, aggregate, rows)
            sums = z[row + first : row + last]
            sums[:] = shift
            add_product(rows, matrices[groups[node]], sums)
            end(sums, weight, bias, eps, rows, normal, found[row + first : row + last])


@kernel
def backward(
    graph: Graph,
    where: Where,
    inputs: Inputs,
    ends: Ends,
    operation: int,
    aggregate: int,
    turned: np.ndarray,
    z: np.ndarray,
    grad: np.ndarray,
    of_inputs: Inputs,
    of_matrices: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add gradients; what rows have gathered is gathered again.

    turned: (U, D, (1 + S) · D), the matrices transposed. z, grad: (M, D), from the forward pass
    and of the next states. of_matrices: (P, U, (1 + S) · D, D). sums: (P, 3, D), of weight, of bias
    and of shift.
    """
    starts, sources, types = graph
    runs, places, heads, groups, tile = where
    h, values, queries = inputs
    of_h, of_values, of_queries = of_inputs
    matrices, _, weight, bias, eps = ends
    count, width = queries.shape
    for part in prange(-(-count // tile)):
        low, high = part * tile, min(part * tile + tile, count)
        m, slope = np.empty(tile * width, h.dtype), np.empty(tile * width, h.dtype)
        own, normal = np.empty((4, tile * width), h.dtype), np.empty(width, h.dtype)
        smooth, peak = np.zeros((2, tile * width), h.dtype), np.zeros((2, tile * width), h.dtype)
        left = np.zeros((2, tile * width), h.dtype)
        space, of_space = (
            np.empty((tile, matrices.shape[1]), h.dtype),
            np.empty((tile, matrices.shape[1]), h.dtype),
        )
        of_ends = np.empty((tile, width), h.dtype)
        for run in range(len(runs)):
            node, first, last, row = runs[run]
            row -= first
            first, last = max(first, low), min(last, high)
            if first >= last:
                continue
            a, b, size = first * width, last * width, (last - first) * width
            begin(node, heads[first:last], queries[first:last], own)
            for edge in range(starts[node], starts[node + 1]):
                place = places[sources[edge] * count + first] * width
                x, value = h[place : place + size], values[types[edge], a:b]
                messages_of(x, value, operation, m[:size])
                add(m[:size], aggregate, own)
            place = places[node * count + first] * width
            rows, degree = space[: last - first], starts[node + 1] - starts[node] + 1
            rows_of(h[place : place + size], own, degree, aggregate, rows)

            span, group = slice(row + first, row + last), groups[node]
            by, of_z, of_rows = grad[span], of_ends[: last - first], of_space[: last - first]
            end_back(z[span], weight, bias, eps, by, normal, of_z, sums[part])
            of_rows[:] = 0
            add_product(of_z, turned[group], of_rows)
            add_outer(rows, of_z, of_matrices[part, group])
            for query in range(last - first):
                for c in range(width):
                    of_h[place + query * width + c] += of_rows[query, c] + by[query, c]
            slopes_of(rows, of_rows, degree, aggregate, smooth, peak, left)
            at = slice(first, last)
            begin_back(
                node,
                heads[at],
                queries[at],
                aggregate,
                smooth,
                peak,
                left,
                m[:size],
                slope[:size],
                of_queries[at],
            )
            for edge in range(starts[node], starts[node + 1]):
                place, kind = places[sources[edge] * count + first] * width, types[edge]
                x, value = h[place : place + size], values[kind, a:b]
                messages_of(x, value, operation, m[:size])
                slope_at(m[:size], aggregate, smooth, peak, left, slope[:size])
                of_x, of_value = of_h[place : place + size], of_values[kind, a:b]
                spread(slope[:size], x, value, operation, of_x, of_value)
