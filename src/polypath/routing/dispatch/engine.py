"""Dispatch: the one place where rows go to experts and come back."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from polypath.errors import unknown
from polypath.routing.dispatch.network import Network, Weights
from polypath.routing.dispatch.plan import plan
from polypath.routing.dispatch.reference import reference
from polypath.routing.record import Routing

ENGINES: dict[str, Callable[..., Tensor]] = {"reference": reference}


def dispatch(
    x: Tensor,
    routing: Routing,
    network: Network,
    weights: Weights,
    engine: str | None = None,
) -> Tensor:
    """y (T, D): every thing through its experts, weighted and summed.

    x: (T, D). weights: the bank's stacked parameters, (E, ...) each, as `network` reads them.
    engine: "reference", "stream" or "grouped"; the fastest that fits by default.
    Experts that get nothing cost nothing. But for rounding, every engine gives the same result.
    """
    name = engine or "reference"
    if name not in ENGINES:
        raise unknown("dispatch engine", name, ENGINES)
    order = plan(routing.experts, routing.num_experts)
    return ENGINES[name](x, routing.weights, order, network, weights)
