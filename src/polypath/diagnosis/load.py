"""How evenly experts are used and how sure the gate is, from recorded routings."""

from __future__ import annotations

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
