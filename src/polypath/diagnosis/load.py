"""How evenly experts are used and how sure the gate is, from recorded routings."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from polypath.routing import Routing


def shares(routing: Routing) -> Tensor:
    """(E,) float64: each expert's part of all choices; sums to 1, or is 0 where nothing chose."""
    load = routing.load().double()
    return load / load.sum().clamp_min(1)


def imbalance(routing: Routing) -> float:
    """(max load − mean load) / mean load: 0 when even, E − 1 when one expert serves everything.

    Source: Wang et al. 2024 (loss-free balancing), MaxVio, equation 4.
    """
    share = shares(routing)
    if not share.any():
        return 0.0
    return float(share.max() * routing.num_experts - 1)


def mean_entropy(routing: Routing) -> float:
    """Nats, over the things that count: 0 when the gate is sure, log E when it is even.

    NaN when nothing counts. Raises InputError when the routing has no probabilities.
    """
    entropy = routing.entropy().double()
    return float(entropy.mean() if routing.mask is None else entropy[routing.mask].mean())


def violations(routings: Iterable[Routing]) -> Tensor:
    """(E,) float64, (load − mean load) / mean load of each expert, over all layers that share them.

    0 when even; of n experts E − 1 for one that serves everything, −1 for the rest; the mean is 0.
    Source: ReXMoE (arXiv 2510.17483), equation 7.
    """
    load = torch.stack([routing.load().double() for routing in routings]).sum(0)
    return load / load.mean().clamp_min(1e-300) - 1 if load.any() else torch.zeros_like(load)


def underused(routings: Iterable[Routing], threshold: float = 0.1) -> float:
    """The share of experts whose load is below `threshold` of the mean.

    Over all layers that share the experts.
    """
    return float((violations(routings) < threshold - 1).double().mean())


def share_of(routing: Routing, experts: Iterable[int]) -> float:
    """The part of all choices that went to these experts; 0 where nothing chose."""
    return float(shares(routing)[list(experts)].sum())


def gate_mass(routing: Routing) -> float:
    """The mean sum of a thing's weights: K / E of a flat softmax over all, 1 when renormalised.

    NaN when nothing counts.
    """
    mass = routing.weights.double().sum(-1)
    return float(mass.mean() if routing.mask is None else mass[routing.mask].mean())
