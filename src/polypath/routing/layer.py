"""The routed layer: a router, a bank of experts, and perhaps one expert that serves everything."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polypath.routing.context import RoutingContext, current
from polypath.routing.record import Routing
from polypath.routing.selection import SelectionBias

Listener = Callable[["MoE", Routing], None]
Override = Callable[["MoE", Tensor, RoutingContext], Routing]


class MoE(nn.Module):
    """y = Σ weight · expert(x) over each thing's chosen experts, plus `shared(x)`.

    router: x (T, D), context to Routing. experts: x (T, D), Routing to y (T, D), or y of
        another width.
    shared: a module (T, D) to (T, D) that serves everything, or None.
    losses: a `LayerLoss` each, on the router's and the experts' parameters together, in training;
        the layer keeps copies. Raises InputError where one does not fit the router or the experts.
    Source: Shazeer et al. 2017, equation 1; shared experts: DeepSeekMoE (2024).
    """

    def __init__(
        self,
        router: nn.Module,
        experts: nn.Module,
        shared: nn.Module | None = None,
        losses: Iterable[Any] = (),
    ) -> None:
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.losses = nn.ModuleDict()
        for loss in losses:
            loss.check(router, experts)
            self.losses[loss.name] = deepcopy(loss)
        self.listeners: list[Listener] = []
        self.override: Override | None = None
        self.last: Routing | None = None

    def forward(self, x: Tensor, context: RoutingContext | None = None) -> Tensor:
        """x (..., D) to y (..., D), or as wide as experts are; whoever listens gets the routing."""
        context = context or current()
        if context.shape is None:
            context = replace(context, shape=tuple(x.shape[:-1]))
        rows = x.reshape(-1, x.shape[-1])
        routing = self.route(rows, context)
        if self.training and self.losses:
            own = {
                name: loss(routing, self.router, self.experts, context)
                for name, loss in self.losses.items()
            }
            routing = replace(routing, losses={**routing.losses, **own})
        self.last = routing
        for listener in self.listeners:
            listener(self, routing)
        y = self.experts(rows, routing)
        if self.shared is not None:
            y = y + self.shared(rows)
        return y.view(*x.shape[:-1], y.shape[-1])

    def route(self, rows: Tensor, context: RoutingContext) -> Routing:
        """The routing of rows (T, D): the router's, unless `replay` put another in its place."""
        if self.override is not None:
            return self.override(self, rows, context)
        return self.router(rows, context)

    def __getstate__(self) -> dict:
        """Copies carry neither listeners nor the last routing, which holds autograd history."""
        return self.__dict__ | {"listeners": [], "override": None, "last": None}


def routed_layers(model: nn.Module) -> dict[str, MoE]:
    """The routed layers of a model by their dotted names, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoE)}


def losses(model: nn.Module) -> dict[str, Tensor]:
    """The auxiliary losses of the last forward by name, each the mean over the layers that have it.

    A layer that runs several times in one forward gives those of its last run.
    Already weighted: add them to the task's loss as they are. A part of a larger batch (a
    micro-batch, a rank) gives its share, and shares are added up: the task's loss has to be a share
    too, and where gradients are averaged over ranks the sum of both is multiplied by their number.
    """
    gathered: dict[str, list[Tensor]] = {}
    for layer in routed_layers(model).values():
        if layer.last is not None:
            for name, value in layer.last.losses.items():
                gathered.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean() for name, values in gathered.items()}


def update_biases(model: nn.Module) -> None:
    """Move every selection bias against the load it has seen; call it once after each step."""
    for module in model.modules():
        if isinstance(module, SelectionBias):
            module.update()


@contextmanager
def rehearsal(model: nn.Module) -> Iterator[None]:
    """Forwards inside the block leave no trace: what follows it runs as if it had not been.

    There are no gradients, nobody listens, replays stand where they stood, and torch's random
    states, those of generators in routing contexts among them, are put back. Dropout draws alike
    before and after; buffers that a forward moves (batch norm) are not put back.
    """
    layers = list(routed_layers(model).values())
    before = [(layer, layer.listeners, layer.override, layer.last) for layer in layers]
    states: dict[torch.Generator, Tensor] = {}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    for layer in layers:
        layer.listeners, layer.override = [], _noting(copy(layer.override), states)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for layer, listeners, override, last in before:
            layer.listeners, layer.override, layer.last = listeners, override, last
        for generator, state in states.items():
            generator.set_state(state)


def _noting(override: Override | None, states: dict[torch.Generator, Tensor]) -> Override:
    """Routes as `override` or the router would; notes what generators are like before use."""

    def route(layer: MoE, rows: Tensor, context: RoutingContext) -> Routing:
        generator = context.generator
        if generator is not None and generator not in states:
            states[generator] = generator.get_state()
        return override(layer, rows, context) if override else layer.router(rows, context)

    return route
