"""The plain engine: one expert after another, as the equation reads; any dtype, any bank."""

from __future__ import annotations

import torch
from torch import Tensor

from polypath.routing.dispatch.network import Network, Weights
from polypath.routing.dispatch.plan import Plan


def reference(x: Tensor, gates: Tensor, plan: Plan, network: Network, weights: Weights) -> Tensor:
    """y (T, D) = Σ gate · network(x) over the plan.

    x: (T, D). gates: (T, K). weights: (E, ...) each.
    """
    y = torch.zeros_like(x)
    start = 0
    for expert, count in enumerate(plan.sizes):
        if count == 0:
            continue
        slots, things = plan.slots[start : start + count], plan.things[start : start + count]
        start += count
        rows = network.serve(expert, x[things], weights)
        y = y.index_add(0, things, (rows * gates.flatten()[slots, None]).to(y.dtype))
    return y
