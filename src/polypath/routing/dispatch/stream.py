"""The engine of CPUs: piece by piece in cache, weight gradients written in place.

What grouped layouts pay for is traffic: sorted copies of all rows, hidden values and results. Here
rows are gathered, served and added up in pieces that stay in cache. Loops that index stacked
weights under autograd pay for a gradient of full size at every expert; here each expert's gradient
is written once, where it belongs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.routing.dispatch.memory import Memory, on_huge_pages
from polypath.routing.dispatch.network import Network, StreamedNetwork, Weights
from polypath.routing.dispatch.pieces import Piece, Views, cut
from polypath.routing.dispatch.plan import Plan

PIECE = 3 << 20
FEWEST = 512


def stream(x: Tensor, gates: Tensor, plan: Plan, network: Network, weights: Weights) -> Tensor:
    """As `reference`; a StreamedNetwork gets first derivatives only.

    Under autocast everything is computed in its dtype, and results come in that of x.
    """
    if not isinstance(network, StreamedNetwork):
        return looped(x, gates, plan, network, weights)
    x = x.contiguous()
    if torch.is_autocast_enabled(x.device.type):
        low = torch.get_autocast_dtype(x.device.type)
        weights = [None if w is None else w.to(low) for w in weights]
        with torch.autocast(x.device.type, enabled=False):
            return stream(x.to(low), gates, plan, network, weights).to(x.dtype)
    tensors = [x, gates, *(w for w in weights if w is not None)]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return _Stream.apply(network, plan, x, gates, *weights)
    return _forward(network, plan, x, gates, weights, keep=False)[0]


def looped(x: Tensor, gates: Tensor, plan: Plan, network: Network, weights: Weights) -> Tensor:
    """One expert after another under autograd, every stack of weights taken apart once."""
    own = [None if w is None else w.unbind(0) for w in weights]
    rows = x.index_select(0, plan.things).split(plan.sizes)
    served = [network.serve(e, r, own) for e, r in enumerate(rows) if len(r)]
    weighted = torch.cat([x[:0], *served]) * gates.flatten()[plan.slots, None]
    return torch.zeros_like(x).index_add(0, plan.things, weighted.to(x.dtype))


class _Stream(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, network: StreamedNetwork, plan: Plan, x: Tensor, gates: Tensor, *weights: Any
    ) -> Tensor:
        y, kept = _forward(network, plan, x, gates, weights, keep=True)
        ctx.network, ctx.plan = network, plan
        ctx.save_for_backward(kept, x, gates, *weights)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise InputError(
                "the stream engine has no second derivatives (create_graph=True); "
                "engine='reference' has them"
            )
        kept, x, gates, *weights = ctx.saved_tensors
        _, _, x_wanted, gates_wanted, *wanted = ctx.needs_input_grad
        grads = [
            _gradient(w, ctx.plan) if want else None
            for w, want in zip(weights, wanted, strict=True)
        ]
        x_grad, gates_grad = _backward(
            ctx.network, ctx.plan, grad.contiguous(), x, gates, kept, weights, grads, x_wanted
        )
        return None, None, x_grad, gates_grad if gates_wanted else None, *grads


def _forward(
    network: StreamedNetwork, plan: Plan, x: Tensor, gates: Tensor, weights: Weights, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """y (T, D), and what backward reads again, (S, kept_width), if it is to be kept."""
    views = _views(weights, plan)
    width = network.kept_width(weights)
    pieces = _pieces(plan, x, width)
    memory = Memory(x, max(map(len, pieces), default=0))
    kept = on_huge_pages(x.new_empty(len(plan.slots), width)) if keep else None
    y = torch.zeros_like(x, dtype=_wide(x.dtype))
    parts = _parts(pieces, plan.things, _sorted_gates(gates, plan, x.dtype))
    for piece, things, own_gates in parts:
        rows = torch.index_select(x, 0, things, out=memory.take("rows", len(piece), x.shape[1]))
        if kept is None:
            own_kept = memory.take("kept", len(piece), width)
        else:
            own_kept = kept[piece.start : piece.stop]
        served = network.forward(piece, rows, own_gates, own_kept, views, memory)
        y.index_add_(0, things, served.to(y.dtype))
    return y.to(x.dtype), kept


def _backward(
    network: StreamedNetwork,
    plan: Plan,
    grad: Tensor,
    x: Tensor,
    gates: Tensor,
    kept: Tensor,
    weights: Weights,
    grads: Weights,
    x_wanted: bool,
) -> tuple[Tensor | None, Tensor]:
    """The gradients of x (T, D) and gates (T, K); those of weights are written to grads."""
    views, grad_views = _views(weights, plan), _views(grads, plan)
    pieces = _pieces(plan, x, kept.shape[1])
    memory = Memory(x, max(map(len, pieces), default=0))
    x_grad = torch.zeros_like(x, dtype=_wide(x.dtype)) if x_wanted else None
    gates_grad = torch.zeros_like(gates).flatten()
    sorted_gates = _sorted_gates(gates, plan, x.dtype)
    parts = _parts(pieces, plan.things, plan.slots, sorted_gates, kept)
    for piece, things, slots, own_gates, own_kept in parts:
        rows_grad, own_gates_grad = network.backward(
            piece,
            torch.index_select(grad, 0, things, out=memory.take("grad", len(piece), x.shape[1])),
            torch.index_select(x, 0, things, out=memory.take("rows", len(piece), x.shape[1])),
            own_gates,
            own_kept,
            views,
            grad_views,
            memory,
            x_wanted,
        )
        if x_grad is not None:
            x_grad.index_add_(0, things, rows_grad.to(x_grad.dtype))
        gates_grad.index_copy_(0, slots, own_gates_grad.flatten().to(gates.dtype))
    return None if x_grad is None else x_grad.to(x.dtype), gates_grad.view_as(gates)


def _gradient(weight: Tensor, plan: Plan) -> Tensor:
    """Memory for a stacked weight's gradient, zero for experts without rows."""
    grad = on_huge_pages(torch.empty_like(weight))
    for expert, count in enumerate(plan.sizes):
        if count == 0:
            grad[expert].zero_()
    return grad


def _views(weights: Weights, plan: Plan) -> list[Views | None]:
    """Each stacked weight by expert, those without rows left out where that is less work."""
    served = [expert for expert, count in enumerate(plan.sizes) if count]
    if 2 * len(served) > len(plan.sizes):
        return [None if w is None else w.unbind(0) for w in weights]
    return [None if w is None else {e: w[e] for e in served} for w in weights]


def _sorted_gates(gates: Tensor, plan: Plan, dtype: torch.dtype) -> Tensor:
    """(S, 1): the weight of each row."""
    return gates.flatten().index_select(0, plan.slots).to(dtype).unsqueeze(1)


def _pieces(plan: Plan, x: Tensor, width: int) -> list[Piece]:
    row = x.element_size() * (2 * x.shape[1] + 2 * width)
    return cut(plan.sizes, max(FEWEST, PIECE // row))


def _parts(pieces: list[Piece], *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    """Every piece with its rows of tensors (S, ...)."""
    sizes = [len(piece) for piece in pieces]
    return zip(pieces, *(t.split_with_sizes(sizes) for t in tensors), strict=True)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which results of several experts are added up."""
    return torch.promote_types(dtype, torch.float32)
