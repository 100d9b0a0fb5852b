"""The engine of GPUs: the products of all experts as one grouped product."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.routing.dispatch.network import Network, Weights
from polypath.routing.dispatch.plan import Plan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def grouped(x: Tensor, gates: Tensor, plan: Plan, network: Network, weights: Weights) -> Tensor:
    """As `reference`; raises InputError for networks and dtypes that have no grouped product."""
    if not network.grouped:
        raise InputError(
            f"{type(network).__name__} has no grouped products; engine='stream' or 'reference'"
        )
    if x.dtype not in DTYPES:
        raise InputError(f"no grouped product in {x.dtype}; engine='stream' or 'reference'")
    experts = torch.arange(len(plan.counts), device=x.device)
    experts = experts.repeat_interleave(plan.counts, output_size=len(plan.slots))
    ends = plan.counts.cumsum(0, dtype=torch.int32)  # int64 is refused
    rows = x.index_select(0, plan.things)
    served = network.equation(rows, weights, partial(linear, ends=ends, experts=experts))
    weighted = served * gates.flatten()[plan.slots, None]
    # Each slot is written once and summed in order: the same numbers every time, unlike index_add.
    slots = weighted.new_zeros(gates.numel(), x.shape[1]).index_copy(0, plan.slots, weighted)
    return slots.view(*gates.shape, x.shape[1]).sum(1).to(x.dtype)


def linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, ends: Tensor, experts: Tensor
) -> Tensor:
    """`Linear` for rows sorted by expert.

    rows: (R, in). weight: (E, out, in). bias: (E, out). ends: (E,) int32, where each expert's rows
    end, the last end being R: beyond it the product would leave memory as it was. experts: (R,).
    """
    if torch.is_autocast_enabled(rows.device.type):  # grouped_mm does not follow it
        low = torch.get_autocast_dtype(rows.device.type)
        rows, weight = rows.to(low), weight.to(low)
    outs = weight.shape[1]
    if not (weight.is_contiguous() or weight.mT.is_contiguous()):
        weight = weight.contiguous()
    out = F.grouped_mm(_padded(rows.contiguous(), 1), _padded(weight, 2).mT, offs=ends)
    if out.requires_grad:  # a sum's gradient has no strides, which is refused
        out.register_hook(Tensor.contiguous)
    if out.shape[1] > outs:
        out = out[:, :outs]
    return out if bias is None else out + bias.index_select(0, experts)


def _padded(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with its last dims widened by zeros to multiples of 16 bytes, as strides must."""
    step = 16 // tensor.element_size()
    missing = [-size % step for size in reversed(tensor.shape[-dims:])]
    if not any(missing):
        return tensor
    return F.pad(tensor, [pad for end in missing for pad in (0, end)])
