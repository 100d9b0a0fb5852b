"""Embeddings of nodes from pair matrices: positive pointwise mutual information, factorised.

Shapes: N nodes, D columns.
Source: GRADCO (arXiv 2405.14194), RWPMI and GOPMI; Levy and Goldberg 2014.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import linalg
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.heuristics import to_scipy


def walk_cooccurrence(
    graph: Any, length: int = 3, num_nodes: int | None = None
) -> sparse.csr_array:
    """(N, N) float64, symmetric: how often a walk that is at i is at j up to `length` steps later.

    Of walks that are everywhere in proportion to degrees: the sum of D (D⁻¹A)^t for t = 1 … length.
    The diagonal, where walks return, is kept.
    Raises InputError for a length below 1.
    """
    if length < 1:
        raise InputError(f"walk_cooccurrence: length={length}; at least 1 is right")
    matrix = to_scipy(Adjacency.of(graph, num_nodes).to("cpu"))
    steps = sparse.diags_array(1 / np.maximum(matrix.sum(1), 1)) @ matrix
    total = walks = matrix
    for _ in range(length - 1):
        walks = walks @ steps
        total = total + walks
    return total.tocsr()


def positive_pmi(matrix: sparse.sparray) -> sparse.csr_array:
    """(N, N) float64: the positive part of ln(M_ij · sum of M / (sum of row i · sum of column j)).

    0 where M is 0. Raises InputError for entries below 0.
    """
    weights = sparse.csr_array(matrix, dtype=float, copy=True)
    weights.eliminate_zeros()
    if weights.nnz and weights.data.min() < 0:
        raise InputError(f"positive_pmi: an entry is {weights.data.min():g}; none below 0 is right")
    rows, columns = weights.sum(1), weights.sum(0)
    i, j = weights.tocoo().coords
    # Ratios before products, which would not fit into a float where counts are large.
    information = np.log(weights.data / rows[i]) - np.log(columns[j] / rows.sum())
    found = sparse.csr_array((np.maximum(information, 0), (i, j)), shape=weights.shape)
    found.eliminate_zeros()
    return found


def embed(matrix: sparse.sparray, dim: int = 64, seed: int = 0) -> Tensor:
    """(N, D) float64: U √S of the D greatest singular values of `positive_pmi(M)`.

    matrix: (N, N); taken as M + Mᵀ, which changes nothing where M is symmetric. Columns are in the
    order of their singular values, each of the sign that makes its largest entry positive.
    Raises InputError unless 1 ≤ dim < N, and for entries below 0.
    """
    nodes = matrix.shape[0]
    if not 1 <= dim < nodes:
        raise InputError(f"embed: dim={dim} of {nodes} nodes; 1 … {nodes - 1} is right")
    information = positive_pmi(matrix + matrix.T)
    if not information.nnz:
        return torch.zeros(nodes, dim, dtype=torch.float64)
    start = np.random.default_rng(seed).standard_normal(nodes)
    # Of a symmetric matrix the greatest singular values are the eigenvalues of the greatest size.
    values, vectors = linalg.eigsh(information, dim, v0=start)
    order = np.argsort(-np.abs(values), kind="stable")
    values, vectors = np.abs(values[order]), vectors[:, order]
    largest = vectors[np.abs(vectors).argmax(0), np.arange(dim)]
    return torch.from_numpy(vectors * np.sign(largest) * np.sqrt(values))
