"""How rows end: a product with a matrix, layer norm, activation, residual; for compiled loops.

Shapes: q rows, I inputs, D outputs.
"""

from __future__ import annotations

import numpy as np

from polypath.graphs.kernels import inner


@inner
def add_product(rows: np.ndarray, matrix: np.ndarray, found: np.ndarray) -> None:
    """found (q, D) += rows (q, I) · matrix (I, D), four inputs at a time."""
    whole = len(matrix) // 4 * 4
    for place in range(len(rows)):
        row, out = rows[place], found[place]
        for i in range(0, whole, 4):
            a, b, c, d = row[i], row[i + 1], row[i + 2], row[i + 3]
            one, two, three, four = matrix[i], matrix[i + 1], matrix[i + 2], matrix[i + 3]
            for j in range(len(out)):
                out[j] += a * one[j] + b * two[j] + c * three[j] + d * four[j]
        for i in range(whole, len(matrix)):
            one = matrix[i]
            for j in range(len(out)):
                out[j] += row[i] * one[j]


@inner
def add_outer(rows: np.ndarray, grad: np.ndarray, found: np.ndarray) -> None:
    """found (I, D) += rows (q, I), transposed, · grad (q, D), four rows at a time."""
    whole = len(rows) // 4 * 4
    for place in range(0, whole, 4):
        one, two, three, four = grad[place], grad[place + 1], grad[place + 2], grad[place + 3]
        for i in range(len(found)):
            a, b, c, d = rows[place, i], rows[place + 1, i], rows[place + 2, i], rows[place + 3, i]
            out = found[i]
            for j in range(len(out)):
                out[j] += a * one[j] + b * two[j] + c * three[j] + d * four[j]
    for place in range(whole, len(rows)):
        one = grad[place]
        for i in range(len(found)):
            a, out = rows[place, i], found[i]
            for j in range(len(out)):
                out[j] += a * one[j]


@inner
def end(
    z: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    rows: np.ndarray,
    normal: np.ndarray,
    found: np.ndarray,
) -> None:
    """found (q, D) = relu(layer_norm(z)) + the first D columns of rows. normal: (D,), to use."""
    none = z.dtype.type(0)
    for place in range(len(z)):
        row, out = rows[place], found[place]
        _normalise(z[place], eps, normal)
        for c in range(len(normal)):
            y = normal[c] * weight[c] + bias[c]
            out[c] = (y if y > none else none) + row[c]


@inner
def end_back(
    z: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    eps: float,
    grad: np.ndarray,
    normal: np.ndarray,
    of_z: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Set the gradient of z (q, D); add those of weight and bias, and z's sum, to sums (3, D)."""
    width, none = z.shape[1], z.dtype.type(0)
    of_weight, of_bias, total = sums[0], sums[1], sums[2]
    for place in range(len(z)):
        scale = _normalise(z[place], eps, normal)
        by, slope = grad[place], of_z[place]
        for c in range(width):
            y = normal[c] * weight[c] + bias[c]
            slope[c] = by[c] if y > none else none
            of_weight[c] += slope[c] * normal[c]
            of_bias[c] += slope[c]
            slope[c] *= weight[c]
        mean, along = none, none
        for c in range(width):
            mean += slope[c]
            along += slope[c] * normal[c]
        mean /= z.dtype.type(width)
        along /= z.dtype.type(width)
        for c in range(width):
            slope[c] = (slope[c] - mean - along * normal[c]) * scale
            total[c] += slope[c]


@inner
def _normalise(z: np.ndarray, eps: float, found: np.ndarray) -> float:
    """Zero mean and unit variance; 1 over the standard deviation."""
    total, square, count = z.dtype.type(0), z.dtype.type(0), z.dtype.type(len(z))
    for c in range(len(z)):
        total += z[c]
    mean = total / count
    for c in range(len(z)):
        found[c] = z[c] - mean
        square += found[c] * found[c]
    scale = z.dtype.type(1) / np.sqrt(square / count + z.dtype.type(eps))
    for c in range(len(z)):
        found[c] *= scale
    return scale
