"""A few rows through a part of every expert's matrix, without a copy of the matrices."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polypath.routing.dispatch.memory import on_huge_pages


def projections(rows: Tensor, weights: Tensor, part: slice) -> Tensor:
    """(R, E, F): rows (R, D) times the `part` of each expert's matrix, weights (E, H, D).

    In the dtype of the rows.
    """
    if weights.is_cpu:
        return _Projections.apply(rows, weights, part)
    return torch.einsum("rd,efd->ref", rows, weights[:, part].to(rows.dtype))


class _Projections(torch.autograd.Function):
    """Expert by expert: a part of a stack is no matrix of its own, and would be copied whole."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weights: Tensor, part: slice) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.part = part
        return torch.stack([rows @ own[part].to(rows.dtype).T for own in weights], 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, weights = ctx.saved_tensors
        rows_grad = weights_grad = None
        if ctx.needs_input_grad[0]:
            rows_grad = torch.zeros_like(rows)
            for expert, own in enumerate(weights):
                rows_grad.addmm_(grad[:, expert], own[ctx.part].to(rows.dtype))
        if ctx.needs_input_grad[1]:
            weights_grad = on_huge_pages(torch.empty_like(weights)).zero_()
            for expert, own in enumerate(weights_grad):
                own[ctx.part] = grad[:, expert].T @ rows
        return rows_grad, weights_grad, None
