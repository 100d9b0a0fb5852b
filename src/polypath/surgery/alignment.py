"""Hidden units of experts put into the order of another's, so that averages mean something.

Source: MC-SMoE (Li et al. 2023), algorithm 1: one linear assignment for each expert, which is exact
because an expert has one hidden axis.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polypath.routing.dispatch import Weights


def agreement(one: Weights, other: Weights) -> Tensor:
    """(F, F) float64: how alike the hidden units of two experts are, [a, b] unit a of `one`.

    one, other: a network's weights, (·F, D), bias, (D, F), bias. Products of the rows of every
    inner map and of the columns of the outer one.
    """
    width = one[2].shape[1]
    found = one[2].double().T @ other[2].double()
    for a, b in zip(one[0].split(width), other[0].split(width), strict=True):
        found += a.double() @ b.double().T
    return found


def permutation(reference: Weights, expert: Weights) -> Tensor:
    """(F,) int64: which unit of the expert stands for each unit of the reference."""
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment(agreement(reference, expert).numpy(), maximize=True)
    return torch.from_numpy(columns)


def reorder(weights: Weights, order: Tensor) -> None:
    """Put a network's hidden units into another order, in place; it computes what it did."""
    w_in, b_in, w_out, _ = weights
    for part in w_in.split(w_out.shape[1]):
        part.copy_(part[order])
    for part in () if b_in is None else b_in.split(w_out.shape[1]):
        part.copy_(part[order])
    w_out.copy_(w_out[:, order])


def align(weights: Weights) -> None:
    """Stacked experts (E, ...), each put into the order of the first, in place."""
    first = [None if part is None else part[0] for part in weights]
    for expert in range(1, len(weights[0])):
        own = [None if part is None else part[expert] for part in weights]
        reorder(own, permutation(first, own))
