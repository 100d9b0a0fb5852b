"""Dispatch: the one place where rows go to experts and come back."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.routing.dispatch.grouped import grouped
from polypath.routing.dispatch.network import Network, Weights
from polypath.routing.dispatch.plan import plan
from polypath.routing.dispatch.reference import reference
from polypath.routing.dispatch.stream import stream
from polypath.routing.record import Routing

ENGINES: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "stream": stream,
    "grouped": grouped,
}


def dispatch(
    x: Tensor,
    routing: Routing,
    network: Network,
    weights: Weights,
    engine: str | None = None,
) -> Tensor:
    """y (T, D): every thing through its experts, weighted and summed.

    x: (T, D). weights: the bank's stacked parameters, (E, ...) each, as `network` reads them.
    engine: "reference", "stream" or "grouped"; by default what the environment variable
        POLYPATH_ENGINE names, or else the fastest that fits (see `choose`).
    Experts that get nothing cost nothing. But for rounding, every engine gives the same result.
    Raises InputError for an engine that is unknown or does not fit, and for a routing over other
    experts than the bank's.
    """
    num_experts = routing.num_experts
    sizes = {len(weight) for weight in weights if weight is not None}
    if sizes - {num_experts}:
        raise InputError(
            f"a routing over {num_experts} experts for a bank of {', '.join(map(str, sizes))}"
        )
    name = engine or os.environ.get("POLYPATH_ENGINE") or choose(x, network)
    if name not in ENGINES:
        raise unknown("dispatch engine", name, ENGINES)
    order = plan(routing.experts, num_experts)
    return ENGINES[name](x, routing.weights, order, network, weights)


def choose(x: Tensor, network: Network) -> str:
    """The engine for x and a network.

    Double precision is there for truth, and gets the plain loop. A GPU wants few large kernels:
    one grouped product. A CPU wants its rows in cache: one piece after another.
    """
    if x.dtype == torch.float64:
        return "reference"
    return "grouped" if x.is_cuda and network.grouped else "stream"
