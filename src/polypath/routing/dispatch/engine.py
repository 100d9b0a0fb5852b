"""Dispatch: the one place where rows go to experts and come back."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.routing.dispatch.grouped import grouped
from polypath.routing.dispatch.network import Network, Weights
from polypath.routing.dispatch.plan import Plan, plan
from polypath.routing.dispatch.reference import reference
from polypath.routing.dispatch.stream import stream
from polypath.routing.record import Routing

ENGINES: dict[str, Callable[..., Tensor]] = {
    "reference": reference,
    "stream": stream,
    "grouped": grouped,
}

LITTLE = 200_000_000
"""Products of two numbers, below which the calls of a CPU cost more than its cache misses."""

LARGE = 8_000_000
"""Values of a gradient whose memory is new to the process each time it is made."""


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
    order = plan(routing.experts, routing.num_experts)
    name = engine or os.environ.get("POLYPATH_ENGINE") or choose(x, order, network, weights)
    if name not in ENGINES:
        raise unknown("dispatch engine", name, ENGINES)
    return ENGINES[name](x, routing.weights, order, network, weights)


def choose(x: Tensor, plan: Plan, network: Network, weights: Weights) -> str:
    """The engine for x (T, D), its plan, a network and its weights.

    Double precision is there for truth, and gets the plain loop. A GPU wants few large kernels:
    one grouped product. A CPU wants its rows in cache: piece by piece. But where there is little
    to compute, the calls themselves cost most, and the grouped product makes the fewest, unless it
    had to make large gradients.
    """
    if x.dtype == torch.float64:
        return "reference"
    if not network.grouped:
        return "stream"
    if x.is_cuda:
        return "grouped"
    stacks = [w for w in weights if w is not None]
    values = sum(w.numel() for w in stacks)
    trained = torch.is_grad_enabled() and any(w.requires_grad for w in stacks)
    little = len(plan.slots) * values < LITTLE * max(len(plan.sizes), 1)
    return "grouped" if little and not (trained and values > LARGE) else "stream"
