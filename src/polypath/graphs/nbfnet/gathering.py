"""What a node gathers for a run of queries, and the gradients of that; for compiled loops.

Shapes: q queries of a run, D width, S statistics of a row. x, value, m, slope: (q D,). own: (4,
q D), sums, squares, maxima and minima so far. Of rows, (q, (1 + S) D): a pair's own state, then its
statistics. aggregate: 0 mean, maximum, minimum and deviation; 1 sum; 2 mean; 3 maximum.
"""

from __future__ import annotations

import numpy as np

from polypath.graphs.fused import add_slope, add_statistics, take_peak
from polypath.graphs.kernels import inner


@inner
def begin(node: int, heads: np.ndarray, queries: np.ndarray, own: np.ndarray) -> None:
    """What a node has gathered before its edges: the query at its head, else 0."""
    width = queries.shape[1]
    own[:, : len(heads) * width] = 0
    for query in range(len(heads)):
        if heads[query] == node:
            for c in range(width):
                own[:, query * width + c] = queries[query, c]
                own[1, query * width + c] *= queries[query, c]


@inner
def add(m: np.ndarray, aggregate: int, own: np.ndarray) -> None:
    """A message more."""
    total, high = own[0], own[2]
    if aggregate == 0:
        add_statistics(m, total, own[1], high, own[3])
    elif aggregate == 3:
        for c in range(len(m)):
            high[c] = m[c] if m[c] > high[c] else high[c]
    else:
        for c in range(len(m)):
            total[c] += m[c]


@inner
def rows_of(
    state: np.ndarray, own: np.ndarray, degree: int, aggregate: int, rows: np.ndarray
) -> None:
    """Set rows from a node's states (q D,) and from what it has gathered."""
    share, least = own.dtype.type(1 / degree), own.dtype.type(1e-6)
    total, square, high, low = own[0], own[1], own[2], own[3]
    width = rows.shape[1] // (5 if aggregate == 0 else 2)
    for query in range(len(rows)):
        a = query * width
        row = rows[query]
        for c in range(width):
            row[c] = state[a + c]
        row = row[width:]
        if aggregate == 0:
            for c in range(width):
                mean = total[a + c] * share
                variance = square[a + c] * share - mean * mean
                row[c] = mean
                row[width + c] = high[a + c]
                row[2 * width + c] = low[a + c]
                row[3 * width + c] = np.sqrt(variance if variance > least else least)
        elif aggregate == 3:
            for c in range(width):
                row[c] = high[a + c]
        else:
            factor = share if aggregate == 2 else own.dtype.type(1)
            for c in range(width):
                row[c] = total[a + c] * factor


@inner
def slopes_of(
    rows: np.ndarray,
    grad: np.ndarray,
    degree: int,
    aggregate: int,
    smooth: np.ndarray,
    peak: np.ndarray,
    left: np.ndarray,
) -> None:
    """From the gradient of rows to that of their messages m, each (2, q D).

    smooth: slopes of the sum and of m² / 2. peak, left: extremes and the gradients that they give.
    """
    share, none = rows.dtype.type(1 / degree), rows.dtype.type(0)
    # The deviation of the least variance, above which there is a gradient.
    least = np.sqrt(rows.dtype.type(1e-6))
    width = rows.shape[1] // (5 if aggregate == 0 else 2)
    for query in range(len(rows)):
        row, by, a = rows[query, width:], grad[query, width:], query * width
        if aggregate == 0:
            for c in range(width):
                deviation = row[3 * width + c]
                double = by[3 * width + c] * share / deviation if deviation > least else none
                smooth[1, a + c] = double
                smooth[0, a + c] = by[c] * share - double * row[c]
                peak[0, a + c], peak[1, a + c] = row[width + c], row[2 * width + c]
                left[0, a + c], left[1, a + c] = by[width + c], by[2 * width + c]
        elif aggregate == 3:
            for c in range(width):
                peak[0, a + c], left[0, a + c] = row[c], by[c]
        else:
            factor = share if aggregate == 2 else rows.dtype.type(1)
            for c in range(width):
                smooth[0, a + c] = by[c] * factor


@inner
def slope_at(
    m: np.ndarray,
    aggregate: int,
    smooth: np.ndarray,
    peak: np.ndarray,
    left: np.ndarray,
    slope: np.ndarray,
) -> None:
    """Set the slope of a message; extremes give theirs to the first that is equal."""
    size = len(m)
    slope[:] = 0
    if aggregate != 3:
        add_slope(m, smooth[0, :size], smooth[1, :size], slope)
    if aggregate == 0 or aggregate == 3:
        take_peak(m, peak[0, :size], left[0, :size], slope)
    if aggregate == 0:
        take_peak(m, peak[1, :size], left[1, :size], slope)


@inner
def begin_back(
    node: int,
    heads: np.ndarray,
    queries: np.ndarray,
    aggregate: int,
    smooth: np.ndarray,
    peak: np.ndarray,
    left: np.ndarray,
    m: np.ndarray,
    slope: np.ndarray,
    of_queries: np.ndarray,
) -> None:
    """The boundary takes what is due to it first; only at heads is it somebody's."""
    width = queries.shape[1]
    m[:] = 0
    for query in range(len(heads)):
        if heads[query] == node:
            m[query * width : query * width + width] = queries[query]
    slope_at(m, aggregate, smooth, peak, left, slope)
    for query in range(len(heads)):
        if heads[query] == node:
            for c in range(width):
                of_queries[query, c] += slope[query * width + c]
