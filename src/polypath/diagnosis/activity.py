"""How many experts serve a thing, and whether that follows from how sure its gate is."""

from __future__ import annotations

import torch
from torch import Tensor

from polypath.routing import Routing


@torch.no_grad()
def activity(routing: Routing) -> Tensor:
    """(E + 1,) int64: how many counted things are served by 0, 1, … E experts."""
    return torch.bincount(_counted(routing, routing.count()), minlength=routing.num_experts + 1)


@torch.no_grad()
def follows_entropy(routing: Routing) -> float:
    """Correlation over counted things of their count of experts and the entropy of their gate.

    NaN where either is the same for all: of a router with a fixed count there is none.
    Raises InputError when the routing has no probabilities.
    """
    entropy = _counted(routing, routing.entropy()).double()
    count = _counted(routing, routing.count()).double()
    if len(count) < 2 or float(count.std()) == 0 or float(entropy.std()) == 0:
        return float("nan")
    return float(torch.corrcoef(torch.stack([count, entropy]))[0, 1])


def _counted(routing: Routing, values: Tensor) -> Tensor:
    return values if routing.mask is None else values[routing.mask]
