"""The engine of GPUs and of small problems: the products of all experts as one grouped product."""

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
    ends = plan.counts.cumsum(0, dtype=torch.int32)  # int64 is refused
    rows = x.index_select(0, plan.things)
    served = network.equation(rows, weights, partial(linear, plan=plan, ends=ends))
    weighted = served * gates.flatten().index_select(0, plan.slots).unsqueeze(1)
    return _added(weighted, x, gates, plan).to(x.dtype)


def _added(weighted: Tensor, x: Tensor, gates: Tensor, plan: Plan) -> Tensor:
    """y (T, D): the sum of each thing's rows, of (S, D)."""
    if x.is_cpu:
        wide = torch.promote_types(x.dtype, torch.float32)
        return torch.zeros_like(x, dtype=wide).index_add(0, plan.things, weighted.to(wide))
    # The threads of a GPU would add in any order: each row gets a place, and places are summed.
    places = weighted.new_zeros(gates.numel(), x.shape[1]).index_copy(0, plan.slots, weighted)
    return places.view(*gates.shape, x.shape[1]).sum(1)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None, plan: Plan, ends: Tensor) -> Tensor:
    """`Linear` for the rows (S, in) of a plan, sorted by expert.

    weight: (E, out, in). bias: (E, out). ends: (E,) int32, where each expert's rows end; the last
    is S, beyond which the product would leave memory as it was.
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
    if bias is None:
        return out
    return out + bias.repeat_interleave(plan.counts, 0, output_size=len(rows))


def _padded(tensor: Tensor, dims: int) -> Tensor:
    """The tensor with its last dims widened by zeros to multiples of 16 bytes, as strides must."""
    step = 16 // tensor.element_size()
    missing = [-size % step for size in reversed(tensor.shape[-dims:])]
    if not any(missing):
        return tensor
    return F.pad(tensor, [pad for end in missing for pad in (0, end)])
